"""The characters of a file: plain or .gz, in UTF-8, or in UTF-16 or UTF-32 where its first bytes say so.

Other encodings are for CSV and TSV, see `fedsb.tasks.rows.encodings`.
"""

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import IO, cast

from fedsb.errors import InputError

LONGEST_LINE = 1 << 24
"""Characters of one line of JSON, and of one cell of CSV."""
MOST_EXPANSION, ANY_EXPANSION = 200, 1 << 26
"""Bytes that one byte of a .gz file may become, and bytes below which that is not looked at. Text becomes 3
to 30 times as long; what deflate allows, a thousand times, would fill any memory."""
LINE_END = re.compile(r"\r\n?|\n")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {b"PK\x03\x04": "an Excel workbook or zip archive", b"PAR1": "Parquet", b"\x1f\x8b": "gzip"}


class _Bounded(io.RawIOBase):
    """The bytes in a .gz file, as long as they are not absurdly many."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self.file = gzip.open(path)  # noqa: SIM115 - closed with this
        self.most = max(ANY_EXPANSION, MOST_EXPANSION * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = self.file.readinto(buffer)
        self.count += size
        if self.count > self.most:
            raise InputError(
                f"{self.path}: becomes more than {MOST_EXPANSION} times as long when unpacked, which no "
                "table does; unpack it, look what it is, and name the file that comes out"
            )
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked."""
    if path.suffix.lower() != ".gz":
        return open(path, "rb")
    return cast(IO[bytes], io.BufferedReader(_Bounded(path), 1 << 16))


def open_text(path: Path, newline: str | None = None, encoding: str | None = None) -> IO[str]:
    """The file's characters. newline: as of `open`. encoding: None goes by the first bytes."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding or unicode_form(path), newline=newline)


def in_words(error: Exception, path: Path, encoding: str | None = None) -> str:
    """What kept a file from being read, and the cure, without any of its content.

    encoding: in which it was read; None: that of its first bytes.
    """
    if isinstance(error, UnicodeDecodeError):
        return _not_decoded(path, encoding or unicode_form(path))
    return f"cannot be read: {error}; check the file and its permissions"


def unicode_form(path: Path) -> str:
    """UTF-8, or what the byte order mark says; a zero among the first two bytes is half a UTF-16 letter."""
    with open_bytes(path) as file:
        start = file.read(4)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    first, second = start[:1] == b"\0", start[1:2] == b"\0"
    return "utf-8" if first == second else "utf-16-be" if first else "utf-16-le"


def other_kind(path: Path) -> str | None:
    """What a file is that is no text, as far as its first bytes say."""
    with open_bytes(path) as file:
        start = file.read(4)
    kind = next((kind for mark, kind in _OTHERS.items() if start.startswith(mark)), None)
    return kind and f"expected text, found {kind}; rename the file, or save it as CSV in UTF-8"


def _not_decoded(path: Path, encoding: str) -> str:
    if other := other_kind(path):
        return other
    with open_bytes(path) as file:
        before = content = file.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start]
    line = 1 + len(LINE_END.findall(before.decode(encoding, "ignore")))
    name = encoding.removesuffix("-sig").upper()
    return f"line {line}: expected {name} text, found other bytes; save it as UTF-8, for example with iconv"
