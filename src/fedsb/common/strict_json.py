"""JSON from somebody who may be hostile: one small document, or a ValueError. Imports nothing of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

DEPTH = 6
"""Of objects and lists in each other."""
DIGITS = 20
"""Of a whole number: counts and offsets in bytes have fewer."""
TOO_DEEP = "objects and lists in each other too deep to be read"


def strict_json(text: str | bytes, most: int) -> Any:
    """The document: at most `most` bytes of UTF-8 or characters, shallow, each key once, each number finite.

    Raises:
        ValueError: it is not such a document. Nothing else is raised, whatever it holds.
    """
    if len(text) > most:
        raise ValueError(f"{len(text)} bytes of header, {most} is the most")
    try:
        document = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=_once,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (RecursionError, MemoryError):
        raise ValueError(TOO_DEEP) from None
    _check_depth(document)
    return document


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(TOO_DEEP)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number
