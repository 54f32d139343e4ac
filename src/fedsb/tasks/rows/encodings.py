"""The encoding of a CSV or TSV file that has no mark and is no UTF-8: Windows-1252, or an error.

Every byte string is text in Windows-1252, Windows-1250 and the like, with other letters. Windows-1252 is
taken only where these agree on every letter, as on the umlauts, the sharp s and the French e with an acute
accent, and where nothing points to UTF-8 or to DOS. All else is an error with its line; `data.encoding` says
what only a person can know.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fedsb.errors import InputError
from fedsb.tasks.rows.text import LONGEST_LINE, open_bytes, other_kind, unicode_form

WESTERN = "windows-1252"
OTHERS = ("windows-1250", "windows-1254", "windows-1257")
"""Central Europe, Turkey, the Baltic: text in these is as plausible where their letters are other ones."""
_PUNCTUATION = b"\x80\x82\x84\x85\x91\x92\x93\x94\x95\x96\x97\x99"
"""The same marks in all four, where Latin-1 has nothing: quotes, dashes, ellipsis, the euro."""
_DOS = re.compile(rb"[A-Za-z][\x80\x82\x84\x85\x91\x93\x94\x95\x99][A-Za-z]")
"""An umlaut of DOS amid a word; a quote would stand at its border."""
_UTF_8 = re.compile(rb"[\xc2-\xc5][\x80-\xbf]|\xe2[\x80-\xbf]{2}")
"""Letters and marks of Europe in UTF-8."""


def _reading(byte: int, encoding: str) -> str:
    return bytes([byte]).decode(encoding, "replace")


def _is_plain(byte: int) -> bool:
    """Whether no other set has another letter in this place."""
    western = _reading(byte, WESTERN)
    others = (_reading(byte, encoding) for encoding in OTHERS)
    return all(other == western or not unicodedata.category(other).startswith("L") for other in others)


_PLAIN = _PUNCTUATION + bytes(byte for byte in range(0xA0, 0x100) if _is_plain(byte))
_UNCLEAR = re.compile(rb"[^\t-\r -~" + re.escape(_PLAIN) + rb"]")


def encoding_of(path: Path, source: str, given: str | None = None) -> str:
    """The encoding of a file of text, by its mark, by what is `given`, or by all of its bytes.

    Raises:
        InputError: it is not clear, with the line on which that shows.
    """
    if other := other_kind(path):
        raise InputError(f"{source}: {other}")
    marked = unicode_form(path)
    if marked != "utf-8" or given is not None:
        return given if marked == "utf-8" and given is not None else marked
    seen_utf_8, fault = False, ""
    for number, line in _lines(path, source):
        if line.isascii():
            continue
        valid = _is_utf_8(line)
        if not valid or fault:
            fault = fault or f"line {number}"
            if seen_utf_8 or _UTF_8.search(line) or _UNCLEAR.search(line) or _DOS.search(line):
                raise InputError(_unclear(source, number))
        seen_utf_8 = seen_utf_8 or valid
    return WESTERN if fault else "utf-8"


def _lines(path: Path, source: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    with open_bytes(path) as file:
        while piece := file.readline(4 * LONGEST_LINE + 1):
            if len(piece) > 4 * LONGEST_LINE:
                raise InputError(f"{source}: line {number + 1} has more than {LONGEST_LINE:,} characters")
            for line in piece.splitlines():
                number += 1
                yield number, line


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unclear(source: str, number: int) -> str:
    return (
        f"{source}: line {number}: neither UTF-8 nor text that Windows-1252 and its neighbours read alike; "
        "say what it is (data.encoding: windows-1252, windows-1250, ...), or save it as UTF-8, for example "
        "with iconv -f WINDOWS-1252 -t UTF-8"
    )
