"""Texts to any number of classes each: a list, a text with a separator, or a column of 0 and 1 for each."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsb.config.labels import label_name
from fedsb.config.sections.task import MultiLabelConfig
from fedsb.errors import InputError
from fedsb.tasks.classification import checked_columns, encode_texts
from fedsb.tasks.labels import check_count, class_names, unknown_class
from fedsb.tasks.logits import losses, measure
from fedsb.tasks.rows import is_missing, place, require_columns
from fedsb.tasks.rows.cells import check_text
from fedsb.tasks.task import Batch, Example, Row, Task, collate_texts

THRESHOLD = 0.5
"""A class is predicted where its probability is larger."""
MARKS = {"0": 0.0, "false": 0.0, "1": 1.0, "true": 1.0}
"""Cells of a column that is a class."""


def multi_label_of(
    section: MultiLabelConfig, tokenizer: Any, rows: Sequence[Row], *, source: str, max_length: int
) -> Task:
    """The task of a config's section; the classes are its columns, those that it lists, or those of the
    training rows.

    Its loss is the mean over the classes of the binary cross-entropy.
    """
    names = _names(section, rows, source)
    collate = partial(_collate, tokenizer, len(names))
    columns = checked_columns(section.text)
    encode = partial(encode_texts, tokenizer, columns=columns, max_length=max_length)
    return Task(
        primary_metric=section.metric or "micro_f1",
        higher_is_better=True,
        num_labels=len(names),
        label_names=names,
        encode=partial(encode, labels_of=partial(_labels, section, names)),
        questions=partial(encode, labels_of=partial(_none, len(names))),
        said=partial(_said, names),
        collate=collate,
        losses=losses,
        measure=partial(measure, collate, scores, None, shares=frozenset({"exact_match"})),
        partition_label=None,
    )


def _collate(tokenizer: Any, num_labels: int, examples: Sequence[Example]) -> Batch:
    batch = collate_texts(tokenizer, examples, label_type=torch.float32)
    return batch | {"labels": batch["labels"].reshape(len(examples), num_labels)}


def _said(names: Sequence[str], logits: Tensor, example: Example) -> dict[str, Any]:
    shares = dict(zip(names, torch.sigmoid(logits).tolist(), strict=True))
    return {"labels": [name for name in names if shares[name] > THRESHOLD], "probabilities": shares}


# Labels


def _none(num_labels: int, rows: Sequence[Row], source: str) -> list[list[float]]:
    """In the place of labels that nobody knows."""
    return [[0.0] * num_labels for _ in rows]


def _names(section: MultiLabelConfig, rows: Sequence[Row], source: str) -> tuple[str, ...]:
    if isinstance(section.label, list):
        return tuple(section.label)
    if section.labels is not None:
        return tuple(section.labels)
    require_columns(rows, [section.label], source=source, key="task.label")
    values = [v for n, row in enumerate(rows, start=1) for v in _values(section, row, source, n)]
    names = class_names(values)
    check_count(names, section.label, source)
    return names


def _labels(
    section: MultiLabelConfig, names: tuple[str, ...], rows: Sequence[Row], source: str
) -> list[list[float]]:
    """A 0 or 1 for each row and class."""
    if isinstance(section.label, list):
        require_columns(rows, section.label, source=source, key="task.label")
        return [_marked(section.label, row, source, n) for n, row in enumerate(rows, start=1)]
    require_columns(rows, [section.label], source=source, key="task.label")
    places = {name: at for at, name in enumerate(names)}
    return [_placed(section, places, row, source, n) for n, row in enumerate(rows, start=1)]


def _marked(columns: Sequence[str], row: Row, source: str, number: int) -> list[float]:
    marks = []
    for column in columns:
        mark = MARKS.get(label_name(row.get(column)))
        if mark is None:
            raise InputError(
                f"{place(row, source, number)}: expected 0 or 1 (or false, true) in column {column!r}, which "
                "task.label names as a class; fix the cell"
            )
        marks.append(mark)
    return marks


def _placed(
    section: MultiLabelConfig, places: dict[str, int], row: Row, source: str, number: int
) -> list[float]:
    marks = [0.0] * len(places)
    for name in map(label_name, _values(section, row, source, number)):
        if name not in places:
            unknown = unknown_class(name, list(places), section.labels is not None)
            raise InputError(
                f"{place(row, source, number)} has a label in column {section.label!r} that {unknown}"
            )
        marks[places[name]] = 1.0
    return marks


def _values(section: MultiLabelConfig, row: Row, source: str, number: int) -> list[Any]:
    """The classes of a row as they stand there."""
    column, separator = str(section.label), section.label_separator
    cell, where = row.get(column), place(row, source, number)
    if isinstance(cell, np.ndarray | tuple):
        cell = list(cell)
    if separator is not None and (is_missing(cell) or isinstance(cell, str)):
        cell = [] if is_missing(cell) else [part for part in str(cell).split(separator) if part.strip()]
    if not isinstance(cell, list):
        raise InputError(
            f"{where}: expected a list of classes in column {column!r}, [] for none; for a text such as "
            "fever;cough set task.label_separator, for one column of 0 and 1 a class let task.label list them"
        )
    for value in cell:
        if not isinstance(value, str | int | float) or is_missing(value):
            raise InputError(
                f"{where}: expected classes as text or numbers in column {column!r}; fix the row"
            )
        if isinstance(value, str):
            check_text(value, row, column, source=source, number=number)
    return cell


# Scores


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """micro_f1 over all decisions, macro_f1 over the classes that occur as label or prediction, exact_match:
    the share of examples of which every class is right. 0 where undefined."""
    predicted, right = logits > np.log(THRESHOLD / (1 - THRESHOLD)), labels > THRESHOLD
    both, either = (predicted & right).sum(axis=0), predicted.sum(axis=0) + right.sum(axis=0)
    occurs = either > 0
    f1 = np.divide(2.0 * both, either, out=np.zeros(len(both)), where=occurs)
    return {
        "micro_f1": float(2 * both.sum() / either.sum()) if occurs.any() else 0.0,
        "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "exact_match": float((predicted == right).all(axis=1).mean()),
    }
