"""Everything that can be wrong with the input of a comparison, looked for before its first run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedsb.common.dotted import at
from fedsb.common.files import read_json
from fedsb.compare.arms import Arm
from fedsb.compare.config import CompareConfig
from fedsb.compare.scored import check_metric
from fedsb.compare.split import split
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.method import method_of
from fedsb.errors import InputError
from fedsb.models.digest import base_digest, examples_digest
from fedsb.runner.evaluate import check_evaluation
from fedsb.runner.owners import owners_of
from fedsb.runner.prepare_data import make_partition, prepare_data, public_examples
from fedsb.runner.prepare_model import prepare_base
from fedsb.runner.prepare_privacy import check_budget
from fedsb.runner.processes import check_engine
from fedsb.runner.site_data import hold_out as hold_out_of_clients
from fedsb.runner.started_on import NAMES
from fedsb.tasks import Row
from fedsb.tasks.held_out import hold_out
from fedsb.tasks.sources import run_rows

OF_THE_DATA = ("federation", "training.max_length")
OF_THE_MODEL = ("method", "training", "privacy")
INPUTS = "inputs.json"
"""In the comparison's folder: digests of the rows and weights that its runs are of."""
HeldOut = tuple[list[Row], list[Row]]
"""The training rows in two parts: to tune on, and to score on."""


def check_inputs(
    arms: Sequence[Arm],
    settings: CompareConfig,
    seeds: Sequence[int],
    tuning_seed: int,
    own_metrics: Collection[str] = (),
) -> tuple[HeldOut | None, dict[str, str]]:
    """(The split for tuning, None where nothing is tuned; digests of the rows and the base's weights.) Reads
    the data, makes every partition, and loads the base model for every kind of adapter. own_metrics: names of
    scores that a program's functions give.

    Raises:
        InputError: as the run in question would.
    """
    for arm in arms:
        _check_arm(arm)
    shared, held_out = arms[0].config, None  # in what no arm may change
    if settings.metric not in own_metrics:
        check_metric(settings.metric, shared)
    if shared.evaluation.benchmarks:
        check_evaluation(shared)
    rows, test, _ = run_rows(shared)
    digests = {"train": examples_digest(rows), "test": examples_digest(test)}
    for alike in _grouped(arms, OF_THE_DATA):
        data = prepare_data(alike[0].config)
        _check_partitions(alike, rows, data.labels, seeds)
        if any(len(arm.rates) > 1 for arm in alike):
            held_out = _held_out(alike, rows, data.labels, settings, tuning_seed)
        for same in _grouped(alike, OF_THE_MODEL):
            with _named(same[0]):
                public = public_examples(same[0].config, data.task, data.train, rows)
                base = prepare_base(same[0].config, replace(data, public=public))
                digests["base"] = base_digest(base.model, base.task_head)
    return held_out, digests


def check_same_inputs(folder: Path, now: dict[str, str]) -> None:
    """Refuse to mix runs of other rows or weights with those that are there.

    Raises:
        InputError: names what differs, and shows nothing of it.
    """
    file = folder / INPUTS
    before = read_json(file) if file.exists() else now
    other = [NAMES[key] for key in now if before.get(key) != now[key]]
    if other:
        listed = "\n  ".join(other)
        raise InputError(
            f"--out: {folder} was started on others than are here now:\n  {listed}\n"
            "Bring back what was there, or name another folder"
        )


def _check_partitions(
    arms: Sequence[Arm], rows: Sequence[Row], labels: Sequence[str] | None, seeds: Sequence[int]
) -> None:
    """Arms whose clients are the same: every partition can be made, and suits each arm's privacy."""
    for seed in seeds:
        parts = make_partition(arms[0].config.model_copy(update={"seed": seed}), rows, labels)
        for arm in arms:
            with _named(arm):
                trained, tests = hold_out_of_clients(arm.config, parts, labels)
                owners = owners_of(arm.config, rows, trained)[1]
                check_budget(arm.config, [*map(len, trained)], [*map(len, tests)], owners)


def _check_arm(arm: Arm) -> None:
    with _named(arm):
        check_settings(arm.config)
        check_engine(arm.config)
        if arm.config.evaluation.every is None:
            raise InputError("evaluation.every: a comparison needs scores; set it to 1 or more")
        _check_scored_rows(arm)


def _check_scored_rows(arm: Arm) -> None:
    """Refuse to choose rates on rows that are scored later, and to compare what no score sees."""
    config, method = arm.config, method_of(arm.config)
    if config.scored_at_clients_alone and len(arm.rates) > 1:
        raise InputError(
            "compare.learning_rates: without data.test the rows that would choose a rate are among those "
            "that clients are scored on; give one rate"
        )
    if method.stays and not config.scored_at_clients_alone:
        raise InputError(
            f"method.name: {method.name}: data.test does not score what stays with clients; leave it out, "
            "and set evaluation.at_clients: true"
        )


@contextmanager
def _named(arm: Arm) -> Iterator[None]:
    """An error in here says whose it is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"arm {arm.name}: {error}") from error


def _held_out(
    arms: Sequence[Arm], rows: Sequence[Row], labels: Sequence[str] | None, settings: CompareConfig, seed: int
) -> HeldOut:
    train, held = _drawn(arms[0].config, rows, labels, settings.validation, seed)
    left, kept = [rows[i] for i in train], None if labels is None else [labels[i] for i in train]
    _check_partitions(arms, left, kept, [seed])
    return left, [rows[i] for i in held]


def _drawn(
    config: RunConfig, rows: Sequence[Row], labels: Sequence[str] | None, validation: float, seed: int
) -> tuple[list[int], list[int]]:
    """(training, validation) indices: of whole groups where the config names their column."""
    if config.data.group is None:
        return split(len(rows), labels, validation, config.federation.clients, seed)
    share = validation if validation < 1 else validation / len(rows)
    data = config.data.model_copy(update={"test": min(share, 0.5)})
    try:
        return hold_out(config.model_copy(update={"data": data}), rows, "the training rows")
    except InputError as error:
        raise InputError(f"compare.validation: {str(error).removeprefix('data.test: ')}") from None


def _grouped(arms: Sequence[Arm], keys: Sequence[str]) -> Iterator[list[Arm]]:
    """Arms whose configs have the same values there."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        values = arm.config.model_dump(mode="json")
        groups.setdefault(json.dumps([at(values, key) for key in keys]), []).append(arm)
    yield from groups.values()
