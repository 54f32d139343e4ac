"""JSON, whoever wrote it: plain values, or a ValueError that shows none of them. Imports nothing of ours."""

from __future__ import annotations

import json
import math
import re
from typing import Any

DEEPEST, DIGITS = 100, 300
"""Lists and objects within each other, and digits of a whole number, in a file."""
HEADER_DEEPEST, HEADER_DIGITS = 6, 20
"""The same in a message's header: counts and offsets in bytes have fewer digits."""
NO_TEXT = "half a surrogate pair (\\ud800 to \\udfff alone), which is no text"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Unreadable(ValueError):
    """What was wrong, in words fit for a message."""


def parse_json(text: str, *, any_text: bool = False) -> Any:
    """The value of a JSON file. NaN and Infinity, as Python writes them, are read.

    Args:
        any_text: let half a surrogate pair through, which no file or terminal takes.

    Raises:
        ValueError: it is not JSON (a `json.JSONDecodeError`), or too deep, or holds a number or a text that
            cannot be worked with.
    """
    value = _decoded(text, _FILE, DEEPEST)
    if not any_text and _HALF.search(text) and not is_text(json.dumps(value, ensure_ascii=False)):
        raise Unreadable(NO_TEXT)
    return value


def strict_json(text: str | bytes, most: int) -> Any:
    """The value of a message's header: shallow, each key once, each number finite.

    Args:
        most: bytes of UTF-8, or characters.

    Raises:
        ValueError: it is not such a header.
    """
    if len(text) > most:
        raise Unreadable(f"{len(text)} bytes of header, {most} is the most")
    return _decoded(text if isinstance(text, str) else text.decode("utf-8"), _HEADER, HEADER_DEEPEST)


def is_text(text: str) -> bool:
    """Whether it can be written: it has no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_digits(digits: str, most: int, where: str = "") -> None:
    """Refuse a whole number that takes long to work with."""
    if len(digits) > most:
        raise Unreadable(f"{where}a whole number of {len(digits):,} digits")


def _decoded(text: str, decoder: json.JSONDecoder, deepest: int) -> Any:
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise Unreadable(too_deep(deepest)) from None
    if text.count("[") + text.count("{") > deepest and _levels(value) > deepest:
        raise Unreadable(too_deep(deepest))
    return value


def too_deep(deepest: int) -> str:
    return f"more than {deepest} lists and objects within each other"


def _levels(value: Any) -> int:
    """Lists and objects within each other, counted without recursion."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _decoder(digits: int, **hooks: Any) -> json.JSONDecoder:
    def whole(text: str) -> int:
        check_digits(text, digits)
        return int(text)

    return json.JSONDecoder(parse_int=whole, parse_float=_number, **hooks)


def _number(text: str) -> float:
    if math.isinf(number := float(text)):
        raise Unreadable("a number beyond 1.8e308")
    return number


def _not_finite(name: str) -> float:
    raise Unreadable("a number that is not finite")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Unreadable("a key is there twice")
    return values


_FILE = _decoder(DIGITS)
_HEADER = _decoder(HEADER_DIGITS, parse_constant=_not_finite, object_pairs_hook=_once)
