"""Choose each arm's learning rate on the held-out training rows; a choice stays until its grid grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsb.common.files import read_json, write_json
from fedsb.compare.arms import Arm, Job, number, tuning_jobs
from fedsb.compare.execute import Problems, execute
from fedsb.compare.progress import Progress
from fedsb.errors import InputError
from fedsb.runner.folder import finished_summary

RECORD = "tuning.json"
NOT_FINITE = "its metric was not finite"


@dataclass(frozen=True)
class Trial:
    """One tuning run. `value` is its final primary metric, None if it failed or was not finite."""

    learning_rate: float
    value: float | None
    run: str
    problem: str | None


@dataclass(frozen=True)
class Choice:
    """An arm's rate. `edge`: it is the smallest or largest that was tried, so a better one may lie beyond."""

    learning_rate: float
    edge: bool
    metric: str | None
    higher_is_better: bool | None
    trials: tuple[Trial, ...]


def recorded_choice(root: Path, arm: str) -> Choice | None:
    file = root / "tuning" / arm / RECORD
    if not file.is_file():
        return None
    values = read_json(file)
    try:
        return Choice(**{**values, "trials": tuple(Trial(**trial) for trial in values["trials"])})
    except (KeyError, TypeError):
        raise InputError(f"{file}: this is no record of a choice; remove it") from None


def known_choice(root: Path, arm: Arm) -> Choice | None:
    """The rate where there is nothing left to find out.

    Raises:
        InputError: it was chosen from a grid with rates that are not asked for any more.
    """
    if len(arm.rates) == 1:
        return Choice(arm.rates[0], False, None, None, ())
    choice = recorded_choice(root, arm.name)
    before = tuple(trial.learning_rate for trial in choice.trials) if choice else arm.rates
    if not set(before) <= set(arm.rates):
        raise InputError(
            f"--out: {root} tuned {arm.name} over {_listed(before)}, now compare.learning_rates asks for "
            f"{_listed(arm.rates)}; rates can be added, not taken away: name another folder, or undo"
        )
    return choice if before == arm.rates else None


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(map(number, rates))


def tune(
    root: Path, arms: Sequence[Arm], seed: int, rounds: int | None, at_once: int, progress: Progress
) -> tuple[dict[str, Choice], Problems]:
    """(rate of each arm, arms of which every rate failed)."""
    grids = {arm.name: tuning_jobs(root, arm, seed, rounds) for arm in arms if not known_choice(root, arm)}
    problems = execute([job for grid in grids.values() for job in grid.values()], at_once, progress)
    choices, failed = {}, {}
    for arm in arms:
        choice = known_choice(root, arm) or _choose(root, grids[arm.name], problems)
        if choice is None:
            reasons = dict.fromkeys(problems.get(job.name, NOT_FINITE) for job in grids[arm.name].values())
            failed[arm.name] = f"no learning rate worked: {'; '.join(reasons)}"
        else:
            choices[arm.name] = choice
    return choices, failed


def _choose(root: Path, grid: dict[float, Job], problems: Problems) -> Choice | None:
    """The best of the grid, recorded so that it stays; None if every rate failed."""
    trials: list[Trial] = []
    any_summary: dict[str, Any] = {}
    for rate, job in grid.items():
        summary = finished_summary(job.folder)
        any_summary = summary or any_summary
        value = summary["final"].get(summary["primary_metric"]) if summary else None
        problem = problems.get(job.name) or (None if value is not None else NOT_FINITE)
        trials.append(Trial(rate, value, job.folder.relative_to(root).as_posix(), problem))
    higher = any_summary.get("higher_is_better", True)
    best = best_rate(trials, higher_is_better=higher)
    if best is None:
        return None
    edge = best in (min(grid), max(grid))
    choice = Choice(best, edge, any_summary["primary_metric"], higher, tuple(trials))
    write_json(grid[best].folder.parent / RECORD, asdict(choice))
    return choice


def best_rate(trials: Sequence[Trial], *, higher_is_better: bool) -> float | None:
    """The rate of the best finite value; among equals the smallest."""
    sign = 1 if higher_is_better else -1
    scored = [
        (sign * t.value, -t.learning_rate) for t in trials if t.value is not None and math.isfinite(t.value)
    ]
    return -max(scored)[1] if scored else None


def as_json(arm: str, choice: Choice) -> list[dict[str, Any]]:
    """The arm's lines of comparison.json's `tuning`."""
    return [
        {
            "method": arm,
            **asdict(trial),
            "metric": choice.metric,
            "chosen": trial.learning_rate == choice.learning_rate,
        }
        for trial in choice.trials
    ]
