"""Training rows held out to choose a learning rate, written once as two files of JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsb.common.files import finite, read_json, write_json, write_text
from fedsb.common.seeding import numpy_generator
from fedsb.errors import InputError
from fedsb.tasks import Row
from fedsb.tasks.pictures import Picture

TRAIN, VALIDATION, RECORD = "train.jsonl", "validation.jsonl", "split.json"


def split(
    number: int, labels: Sequence[str] | None, validation: float, clients: int, seed: int
) -> tuple[list[int], list[int]]:
    """(training, validation) indices, both ascending. Each label keeps a training row.

    Raises:
        InputError: too little would be left to train on.
    """
    size = max(1, round(validation * number)) if validation < 1 else int(validation)
    held = _draw(labels or [""] * number, size, numpy_generator(seed, "validation"))
    most = min(len(held), number - clients)
    if size > most:
        raise InputError(
            f"compare.validation: expected at most {max(most, 0)} of the {number} training rows (each client "
            f"and label needs one to train on), found {validation:g}; lower it, or give one learning rate"
        )
    return sorted(set(range(number)) - set(held)), sorted(held)


def _draw(labels: Sequence[str], size: int, rng: np.random.Generator) -> list[int]:
    """Up to `size` indices in random order, never the last one of a label."""
    left = Counter(labels)
    held: list[int] = []
    for index in rng.permutation(len(labels)).tolist():
        if len(held) < size and left[labels[index]] > 1:
            left[labels[index]] -= 1
            held.append(index)
    return held


def recorded_split(folder: Path) -> dict[str, int] | None:
    """Seed and sizes of the split in this folder, None if there is no whole one."""
    if not all((folder / name).is_file() for name in (TRAIN, VALIDATION, RECORD)):
        return None
    record = read_json(folder / RECORD)
    if not all(type(record.get(key)) is int for key in ("seed", "train", "validation")):
        raise InputError(f"{folder / RECORD}: expected seed, train and validation; remove the folder")
    return record


def recorded_seed(folder: Path) -> int | None:
    record = recorded_split(folder)
    return record["seed"] if record else None


def write_split(folder: Path, train: Sequence[Row], validation: Sequence[Row], seed: int) -> None:
    """Both files, then the record that says they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TRAIN, _lines(train))
    write_text(folder / VALIDATION, _lines(validation))
    write_json(folder / RECORD, {"seed": seed, "train": len(train), "validation": len(validation)})


def _lines(rows: Sequence[Row]) -> str:
    """Dates and the like as the text that a task would see, images with their bytes."""
    return "".join(json.dumps(finite(dict(row)), default=_text) + "\n" for row in rows)


def _text(value: object) -> str:
    return value.data_uri if isinstance(value, Picture) else str(value)
