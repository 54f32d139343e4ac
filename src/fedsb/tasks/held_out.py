"""Test rows held out from the training rows, where `data.test` is a share.

One draw from `data.split_seed` and the rows alone: every seed, method and command has the same test rows, so
that none of them was ever trained on. Of classes each side has its part; rows of one group stay together.

With privacy, neither classes nor other rows' groups move a row to the other side: with one row blanked, all
others stay where they were.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from fedsb.common.seeding import derive, numpy_generator
from fedsb.config import RunConfig
from fedsb.config.sections.task import ClassificationConfig, ImageClassificationConfig
from fedsb.errors import InputError
from fedsb.tasks.labels import label_set, row_name
from fedsb.tasks.owners import owner_cells
from fedsb.tasks.rows import cell_text, require_columns
from fedsb.tasks.task import Row, content_of

MOST_FOLDS = 20
"""Groups are dealt to so many folds at most, of which some become the test rows."""


class Split(NamedTuple):
    """Places of the rows of each side, ascending."""

    train: list[int]
    test: list[int]


def hold_out(config: RunConfig, rows: Sequence[Row], source: str) -> Split:
    """The split of these rows by the config's share.

    Raises:
        InputError: a side or a class of it would be empty, or a row has no group.
    """
    share, seed = config.data.test, derive(config.data.split_seed, "test rows")
    assert isinstance(share, float)
    classes, groups = _classes(config, rows, source), _groups(config, rows, source)
    if config.privacy is not None:
        test = _row_by_row(len(rows), groups, share, seed)
    else:
        if classes is not None:
            _check_pairs(classes, share, len(rows))
        test = _drawn(len(rows), classes, groups, share, seed % 2**32)
    held = set(test)
    split = Split([i for i in range(len(rows)) if i not in held], sorted(held))
    _check_sides(split, classes, share, len(rows), private=config.privacy is not None)
    return split


def _classes(config: RunConfig, rows: Sequence[Row], source: str) -> list[str] | None:
    """Each row's class, where there are classes."""
    task = config.task
    if isinstance(task, ImageClassificationConfig):
        return [row_name(row, task.label, source=source, number=n) for n, row in enumerate(rows, start=1)]
    if not isinstance(task, ClassificationConfig) or task.regresses:
        return None
    if task.labels is None:
        _, regression = label_set(rows, task.label, source, regression=task.regresses)
        if regression:
            return None
    return [row_name(row, task.label, source=source, number=n) for n, row in enumerate(rows, start=1)]


def _groups(config: RunConfig, rows: Sequence[Row], source: str) -> list[str] | None:
    column = config.grouped_by
    if column is None:
        return None
    if config.data.group is None:
        return owner_cells(rows, column, source)
    require_columns(rows, [column], source=source, key="data.group")
    return [cell_text(row, column, source=source, number=n) for n, row in enumerate(rows, start=1)]


def _row_by_row(count: int, groups: list[str] | None, share: float, seed: int) -> list[int]:
    """Rows by their places alone; groups each by its own name."""
    if groups is None:
        order = numpy_generator(seed, "places").permutation(count)
        return list(order[: round(share * count)].tolist())
    sides = {group: derive(seed, group) < share * 2**63 for group in set(groups)}
    return [i for i, group in enumerate(groups) if sides[group]]


def _drawn(
    count: int, classes: list[str] | None, groups: list[str] | None, share: float, seed: int
) -> list[int]:
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    if groups is not None and classes is not None:
        return _folds(classes, groups, share, seed)
    kind: Any = GroupShuffleSplit if groups else StratifiedShuffleSplit if classes else ShuffleSplit
    try:
        _, test = next(kind(1, test_size=share, random_state=seed).split([0] * count, classes, groups))
    except ValueError:
        raise InputError(_too_few(share, count, "leaves a side, or a class of it, without a row")) from None
    return list(test.tolist())


def _folds(classes: list[str], groups: list[str], share: float, seed: int) -> list[int]:
    """Whole groups, of each class about its share: folds of like classes, and as many of them as fit."""
    from sklearn.model_selection import StratifiedGroupKFold

    most = min(MOST_FOLDS, len(set(groups)), max(Counter(classes).values()))
    part = Fraction(share).limit_denominator(max(most, 1))
    taken, folds = max(part.numerator, 1), part.denominator if part else most
    if folds < 2:
        raise InputError(_too_few(share, len(groups), "leaves a side without a group"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer rows than folds; _check_sides looks
        dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(groups, classes, groups)
        return [int(i) for _, (_, test) in zip(range(taken), dealt, strict=False) for i in test]


def _check_pairs(classes: Sequence[str], share: float, count: int) -> None:
    alone = sum(number == 1 for number in Counter(classes).values())
    if alone:
        raise InputError(
            _too_few(share, count, f"needs two rows of each class, and {alone} of the classes have one")
        )


def _check_sides(split: Split, classes: list[str] | None, share: float, count: int, *, private: bool) -> None:
    """Of a private split, the test rows may lack a class: nothing was drawn by classes."""
    for name, side in (("training", split.train), ("test", split.test)):
        if not side:
            raise InputError(_too_few(share, count, f"leaves no {name} row"))
        missing = set(classes or ()).difference(classes[i] for i in side) if classes else set()
        if missing and not (private and name == "test"):
            fault = f"leaves {len(missing)} of {len(set(classes or ()))} classes without a {name} row"
            raise InputError(_too_few(share, count, fault))


def _too_few(share: float, count: int, fault: str) -> str:
    return (
        f"data.test: the share {share:g} of {count} rows {fault}; take another share (at most 0.5) or "
        "data.split_seed, name a file of test rows, or add rows"
    )


def told(split: Split, config: RunConfig) -> Iterator[str]:
    """What to say of the rows held out."""
    data, total = config.data, len(split.train) + len(split.test)
    together = f", rows of one {column} together" if (column := config.grouped_by) else ""
    yield f"data.test: {len(split.test):,} of {total:,} rows are held out (share {data.test:g}{together})"


def num_repeated(train: Sequence[Any], test: Sequence[Any]) -> int:
    """How many test examples have the very tokens, or the image's file, of a training example."""
    known = {hash(content_of(example)) for example in train}
    return sum(hash(content_of(example)) in known for example in test)
