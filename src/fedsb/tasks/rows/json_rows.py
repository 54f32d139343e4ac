"""JSON: one object per line, or one document with an array of objects."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fedsb.common.strict_json import parse_json
from fedsb.errors import InputError
from fedsb.tasks.rows.cells import kind_of
from fedsb.tasks.rows.text import LONGEST_LINE, open_text


def read_json_lines(path: Path, source: str) -> Iterator[dict[str, object]]:
    """An object per line; a line is read when its row is asked for."""
    with open_text(path) as file:
        yield from _objects_by_line(file, source)


def read_json(path: Path, source: str) -> Iterator[dict[str, object]]:
    """The objects of an array, of {"data": [...]}, or of the lines of a file that is no single document."""
    with open_text(path) as file:
        text = file.read()
    try:
        document = parse_json(text, any_text=True) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise InputError(
                f"{source}: line {error.lineno} is not valid JSON: {error.msg} at column {error.colno}"
            ) from error
        yield from _objects_by_line(io.StringIO(text), source)
        return
    except ValueError as error:
        raise InputError(f"{source}: the document holds {error}; fix it") from None
    items = document.get("data") if isinstance(document, dict) else document
    if not isinstance(items, list):
        raise InputError(
            f'{source}: expected an array of objects or {{"data": [objects]}}, got {kind_of(document)}; '
            "for one object per line use the extension .jsonl"
        )
    for number, item in enumerate(items, start=1):
        yield _as_object(item, f"{source}: row {number}")


def _objects_by_line(file: IO[str], source: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(_lines(file), start=1):
        if len(line) > LONGEST_LINE:
            raise InputError(f"{source}: line {number} has more than {LONGEST_LINE:,} characters; cut it")
        if not line.strip():
            continue
        try:
            value = parse_json(line, any_text=True)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{source}: line {number} is not valid JSON: {error.msg} at column {error.colno}; "
                "expected one object per line"
            ) from error
        except ValueError as error:
            raise InputError(f"{source}: line {number} holds {error}; fix the row") from None
        yield _as_object(value, f"{source}: line {number}")


def _lines(file: IO[str]) -> Iterator[str]:
    """Its lines, of one that is too long only so much that this can be seen."""
    return iter(lambda: file.readline(LONGEST_LINE + 1), "")


def _as_object(value: Any, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(
            f'{where}: expected an object such as {{"text": "...", "label": 0}}, got {kind_of(value)}'
        )
    return value
