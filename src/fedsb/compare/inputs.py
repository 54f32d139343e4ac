"""Everything that can be wrong with the input of a comparison, looked for before its first run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsb.check_method import check_method
from fedsb.compare.arms import Arm
from fedsb.compare.scored import check_metric
from fedsb.compare.settings import CompareConfig
from fedsb.compare.split import split
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.evaluate import check_evaluation
from fedsb.prepare_base import prepare_base
from fedsb.prepare_data import make_partition, prepare_data
from fedsb.sources import train_rows
from fedsb.tasks import Row

OF_THE_DATA = ("federation", "training.max_length")
OF_THE_MODEL = ("method", "training")


@dataclass(frozen=True)
class HeldOut:
    """The training rows in two parts: to tune on, and to score on."""

    train: list[Row]
    validation: list[Row]


def check_inputs(
    arms: Sequence[Arm], settings: CompareConfig, seeds: Sequence[int], tuning_seed: int
) -> HeldOut | None:
    """Read the data, make every partition, load the base model for every kind of adapter; the split for
    tuning, None where nothing is tuned.

    Raises:
        InputError: as the run in question would.
    """
    for arm in arms:
        _check_arm(arm)
    check_metric(settings.metric, arms[0].config)
    if arms[0].config.evaluation.benchmarks:
        check_evaluation(arms[0].config)
    rows, held_out = train_rows(arms[0].config), None
    for alike in _grouped(arms, OF_THE_DATA):
        config, data = alike[0].config, prepare_data(alike[0].config)
        for seed in seeds:
            make_partition(config.model_copy(update={"seed": seed}), rows, data.labels)
        if any(len(arm.rates) > 1 for arm in alike):
            held_out = _held_out(config, rows, data.labels, settings, tuning_seed)
        for same in _grouped(alike, OF_THE_MODEL):
            prepare_base(same[0].config, data)
    return held_out


def _check_arm(arm: Arm) -> None:
    try:
        check_method(arm.config)
        if arm.config.evaluation.every is None:
            raise InputError("evaluation.every: a comparison needs scores; set it to 1 or more")
    except InputError as error:
        raise InputError(f"arm {arm.name}: {error}") from error


def _held_out(
    config: RunConfig, rows: Sequence[Row], labels: Sequence[str] | None, settings: CompareConfig, seed: int
) -> HeldOut:
    train, held = split(len(rows), labels, settings.validation, config.federation.clients, seed)
    left, kept = [rows[i] for i in train], None if labels is None else [labels[i] for i in train]
    make_partition(config.model_copy(update={"seed": seed}), left, kept)
    return HeldOut(left, [rows[i] for i in held])


def _grouped(arms: Sequence[Arm], keys: Sequence[str]) -> Iterator[list[Arm]]:
    """Arms whose configs have the same values there."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        values = arm.config.model_dump(mode="json")
        groups.setdefault(json.dumps([_at(values, key) for key in keys]), []).append(arm)
    yield from groups.values()


def _at(values: object, key: str) -> object:
    for part in key.split("."):
        values = values[part] if isinstance(values, dict) else None
    return values
