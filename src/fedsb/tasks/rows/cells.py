"""Rows that know where they are from, and checked access to their cells. No error shows what a cell holds."""

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedsb.common.strict_json import is_text
from fedsb.errors import InputError
from fedsb.tasks.chat.refusal import chat_refusal

Row = Mapping[str, object]


class PlacedRow(dict[str, object]):
    """A row with the name of its source, its number there, from 1, and in a CSV the line on which it begins,
    for errors."""

    __slots__ = ("line", "number", "source")

    def __init__(self, values: Row, source: str, number: int, line: int | None = None) -> None:
        super().__init__(values)
        self.source, self.number, self.line = source, number, line


class ClassId(int):
    """A class label as its number, from 0, which knows the names of all classes; its text is its own name."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "list[ClassId]":
        """The labels of all classes."""
        ids = [cls(number) for number in range(len(names))]
        for class_id in ids:
            class_id.names = tuple(names)
        return ids

    def __str__(self) -> str:
        return self.names[self]


def like(row: Row, values: Row) -> Row:
    """The values as a row from the same place as `row`."""
    return PlacedRow(values, row.source, row.number, row.line) if isinstance(row, PlacedRow) else values


def place(row: Row, source: str, number: int) -> str:
    """Where a row is from, for errors; source, number: of a row that does not know it."""
    if not isinstance(row, PlacedRow):
        return f"{source}: row {number}"
    line = "" if row.line is None else f" (line {row.line})"
    return f"{row.source}: row {row.number}{line}"


def require_columns(rows: Sequence[Row], columns: Iterable[str], *, source: str, key: str = "task") -> None:
    """Check that each column occurs in some row. key: the config key to name in the error."""
    existing = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    for column in columns:
        if column not in existing:
            raise InputError(
                f"{source}: {key} names the column {column!r}, which is not there; "
                f"the columns are {listed(existing)}{_suggestion(column, existing)}; "
                f"fix {key} in the config"
            )


def require_distinct(names: Sequence[str], source: str) -> None:
    """Refuse two columns of one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{source}: expected distinct column names, found {listed(twice)} twice; rename or remove one"
        )


def is_missing(value: object) -> bool:
    """None, or the not-a-number that tables use for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def cell_text(
    row: Row, column: str, *, source: str, number: int, cure: str = "fill it or remove the row"
) -> str:
    """One cell as text: strings unchanged, booleans as JSON spells them, classes by name, all else by str().

    source, number: of a row that does not know them. cure: what to do about a cell without a value.
    """
    value = row.get(column)
    if is_missing(value):
        raise InputError(f"{place(row, source, number)} has no value in column {column!r}; {cure}")
    if isinstance(value, (bytes, list, tuple, dict)):
        raise InputError(
            f"{place(row, source, number)}, column {column!r}: expected text or a number, "
            f"got {chat_refusal(value) or f'{kind_of(value)}; make it a plain string'}"
        )
    text = str(value)
    check_text(text, row, column, source=source, number=number)
    return text.lower() if isinstance(value, bool) else text


def check_text(text: str, row: Row, column: str, *, source: str, number: int) -> None:
    """Refuse what a tokenizer cannot take or no text should hold."""
    if fault := text_fault(text):
        raise InputError(f"{place(row, source, number)}, column {column!r}: {fault}; fix the row")


def text_fault(text: str) -> str:
    """What of it is no text; empty if all is."""
    fault = "a NUL character" if "\0" in text else "" if is_text(text) else "half a surrogate pair"
    return f"{fault}, which is no text" if fault else ""


def kind_of(value: object) -> str:
    """The JSON type of a value, in words."""
    names = {dict: "an object", list: "an array", tuple: "an array", str: "a string", type(None): "null"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in quotes, the first so many of them."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _suggestion(name: str, existing: Sequence[str]) -> str:
    lowered = {other.lower(): other for other in existing}
    close = difflib.get_close_matches(name.lower(), lowered, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(lowered[match]) for match in close)}?)" if close else ""
