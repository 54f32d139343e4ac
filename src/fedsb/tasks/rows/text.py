"""The characters of a file: plain or .gz, in UTF-8, or in UTF-16 or UTF-32 where its first bytes say so.

Nothing else is guessed: Latin-1, Windows-1250 and the like decode each other's bytes without an error and
with other letters, so a file in one of them is refused with the line and the way to convert it.
"""

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import IO, cast

LONGEST_LINE = 1 << 24
"""Characters of one line of JSON, and of one cell of CSV."""
LINE_END = re.compile(r"\r\n?|\n")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {b"PK\x03\x04": "an Excel workbook or zip archive", b"PAR1": "Parquet", b"\x1f\x8b": "gzip"}


def open_text(path: Path, newline: str | None = None) -> IO[str]:
    """The file's characters. newline: as of `open`."""
    file = _open_bytes(path)
    return io.TextIOWrapper(file, encoding=_encoding(file), newline=newline)


def in_words(error: Exception, path: Path) -> str:
    """What kept a file from being read, and the cure, without any of its content."""
    if isinstance(error, UnicodeDecodeError):
        return _not_decoded(path)
    return f"cannot be read: {error}; check the file and its permissions"


def _open_bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else open(path, "rb")


def _encoding(file: IO[bytes]) -> str:
    """By its byte order mark; without one, a zero among the first two bytes is half a letter of UTF-16."""
    start = file.read(4)
    file.seek(0)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    first, second = start[:1] == b"\0", start[1:2] == b"\0"
    return "utf-8" if first == second else "utf-16-be" if first else "utf-16-le"


def _not_decoded(path: Path) -> str:
    with _open_bytes(path) as file:
        encoding, content = _encoding(file), file.read()
    for mark, kind in _OTHERS.items():
        if content.startswith(mark):
            return f"expected text, found {kind}; rename the file, or save it as CSV in UTF-8"
    name, before = encoding.removesuffix("-sig").upper(), content
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start]
    line = 1 + len(LINE_END.findall(before.decode(encoding, "ignore")))
    return (
        f"line {line}: expected {name} text, found other bytes, perhaps of Latin-1 or Windows-1252; save it "
        "as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
    )
