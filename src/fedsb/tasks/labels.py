"""Labels of a classification: the classes of the training rows, or numbers, and each row's own."""

import math
import re
from collections.abc import Sequence

import numpy as np

from fedsb.config.labels import label_name
from fedsb.errors import InputError
from fedsb.tasks.rows import is_missing, place, require_columns
from fedsb.tasks.rows.cells import ClassId, check_text
from fedsb.tasks.task import Row

MOST_LABELS = 1000
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"[+-]?\d+(,\d+)?", re.ASCII)
_GAP = re.compile(r"(?i:nan|n/?a|null|none|[+-]?inf(inity)?)|-+|\?")
"""What spreadsheets write where a number is lacking."""
_CODE = re.compile(r"[+-]?0\d")
"""007 names something."""
_YAML_READS_ELSE = re.compile(r"(?i:yes|no|on|off|null|~)|0\d+|\d+[_:][\d_:]+|\d+\.\d*0")


def label_set(
    rows: Sequence[Row], label: str, source: str, *, regression: bool | None = None
) -> tuple[tuple[str, ...] | None, bool]:
    """(label names in the order of their class ids, False), or (None, True) for regression.

    Regression, unless it is said: every label is a number, or text that writes one without leading zeros, and
    at least one of them is not whole. All else is classes, named as `label_name` does: 1, 1.0 and "1" are one
    class, true and "true" too. Their order is that of the file's own class names; else names that are all
    whole numbers are sorted by value, others by alphabet. Call it with the train rows; other splits must keep
    to their labels.
    """
    require_columns(rows, [label], source=source, key="task.label")
    values = [_value(row, label, source, number) for number, row in enumerate(rows, start=1)]
    if _are_measures(values) if regression is None else regression:
        return None, True
    if regression is None:
        _check_commas(values, label, source)
        _check_gaps(rows, values, label, source)
    names = class_names(values)
    check_count(names, label, source)
    return names, False


def _check_gaps(rows: Sequence[Row], values: Sequence[object], label: str, source: str) -> None:
    """Refuse measures with a gap among them, which would be read as classes."""
    gaps = [n for n, value in enumerate(values) if isinstance(value, str) and _GAP.fullmatch(value.strip())]
    if gaps and _are_measures([value for n, value in enumerate(values) if n not in set(gaps)]):
        where = place(rows[gaps[0]], source, gaps[0] + 1)
        raise InputError(
            f"{where} has no number in column {label!r}, where all others have one ({len(gaps)} such rows); "
            "fill or remove them, or set task.regression: false for classes"
        )


def has_label(row: Row, label: str) -> bool:
    """Whether a row has a label: an empty string counts as missing."""
    value = row.get(label)
    return not (is_missing(value) or (isinstance(value, str) and not value.strip()))


def row_name(row: Row, label: str, *, source: str = "", number: int = 0) -> str:
    """The name of a row's class."""
    return label_name(_value(row, label, source, number))


def class_ids(
    rows: Sequence[Row], label: str, names: Sequence[str], source: str, *, listed: bool = False
) -> list[int]:
    """The place of each row's class among the names. listed: they are the config's, so that errors show them.

    Raises:
        InputError: a row has no label, or another.
    """
    ids = {name: i for i, name in enumerate(names)}
    labels = [row_name(row, label, source=source, number=n) for n, row in enumerate(rows, start=1)]
    for number, (row, name) in enumerate(zip(rows, labels, strict=True), start=1):
        if name not in ids:
            where, value = place(row, source, number), row[label]
            classes = (
                f"; the file's own classes are {_shown(value.names)}" if isinstance(value, ClassId) else ""
            )
            unknown = unknown_class(name, names, listed)
            raise InputError(f"{where} has a label in column {label!r} that {unknown}{classes}")
    return [ids[name] for name in labels]


def targets(rows: Sequence[Row], label: str, source: str) -> list[float]:
    """Each row's number.

    Raises:
        InputError: a row has no label, or one that is no finite number.
    """
    return [_target(row, label, source, number) for number, row in enumerate(rows, start=1)]


def _value(row: Row, label: str, source: str, number: int) -> object:
    """The label as it stands in the row; numpy's numbers as Python's."""
    value = row.get(label)
    where = place(row, source, number)
    if not has_label(row, label):
        raise InputError(f"{where} has no label in column {label!r}; fill it or remove such rows")
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (str, int, float)):
        raise InputError(
            f"{where}: expected a label that is a string or a number in column {label!r}, "
            f"got {type(value).__name__}; one label per row"
        )
    if isinstance(value, str):
        check_text(value, row, label, source=source, number=number)
    return value


def _number(value: object) -> float:
    """The number that a value is or writes; NaN where there is none."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else math.nan
    if isinstance(value, (bool, ClassId)) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)


def _are_measures(values: Sequence[object]) -> bool:
    numbers = [math.nan if _CODE.match(str(value).strip()) else _number(value) for value in values]
    return all(map(math.isfinite, numbers)) and not all(number.is_integer() for number in numbers)


def class_names(values: Sequence[object]) -> tuple[str, ...]:
    """The names of the classes that these values are, in the order of their ids, see `label_set`."""
    of_file = {value.names if isinstance(value, ClassId) else () for value in values}
    if len(of_file) == 1 and (known := of_file.pop()):
        return tuple(dict.fromkeys(map(label_name, known)))
    names = sorted(set(map(label_name, values)))
    whole = all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names)
    return tuple(sorted(names, key=int) if whole else names)


def _check_commas(values: Sequence[object], label: str, source: str) -> None:
    """Refuse to take numbers of some countries' spreadsheets for names."""
    texts = [str(value).strip() for value in values]
    if all(map(_COMMA.fullmatch, texts)) and any("," in text for text in texts):
        raise InputError(
            f"{source}: the labels in column {label!r} look like numbers with decimal commas; write 2.5, not "
            "2,5, or set task.regression: false if they are names of classes"
        )


def check_count(names: Sequence[str], label: str, source: str) -> None:
    """Refuse a column that has too many classes, or fewer than two."""
    if len(names) > MOST_LABELS:
        raise InputError(
            f"{source}: column {label!r} has {len(names)} distinct labels, but at most {MOST_LABELS} "
            "can be classes; check task.label (for whole numbers as a regression: task.regression: true)"
        )
    if len(names) < 2:
        raise InputError(
            f"{source}: expected two or more labels in column {label!r}, found one in all rows; check "
            "task.label and data.limit"
        )


def unknown_class(name: str, names: Sequence[str], listed: bool) -> str:
    """What is wrong with a class that is none of these, in words that follow "a label that"."""
    if not listed:
        return (
            f"is none of the training rows' {len(names)} classes; fix or remove the row, or raise "
            "data.limit.train"
        )
    quote = (
        "; YAML reads no, yes, on and off as false and true, and 010 as 8: put such names in quotes there"
        if _YAML_READS_ELSE.fullmatch(name)
        else ""
    )
    return f"task.labels does not have ({_shown(names)}); fix the row or task.labels{quote}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _target(row: Row, label: str, source: str, number: int) -> float:
    target = _number(_value(row, label, source, number))
    if not math.isfinite(target):
        raise InputError(
            f"{place(row, source, number)}: expected a finite number such as 2.5 in column {label!r}, since "
            "this is a regression (by its training labels or the config); fix or remove the row, or set "
            "task.regression: false for classes"
        )
    return target
