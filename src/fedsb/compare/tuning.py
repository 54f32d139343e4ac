"""Choose each arm's learning rate on the held-out training rows. A grid whose best lies at its edge grows; a
choice stays until another grid is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsb.common.files import read_json, write_json
from fedsb.compare.arms import Arm, Job, number, tuning_jobs
from fedsb.compare.config import CompareConfig
from fedsb.compare.execute import Problems, execute
from fedsb.compare.progress import Progress
from fedsb.errors import InputError
from fedsb.runner.folder import finished_summary

RECORD = "tuning.json"
NOT_FINITE = "its metric was not finite"


@dataclass(frozen=True)
class Trial:
    """One tuning run. `value` is its final primary metric, None if it failed or was not finite; `beyond`: the
    rate is none of the grid that was asked for, which had its best at that edge."""

    learning_rate: float
    value: float | None
    run: str
    problem: str | None
    beyond: bool = False


@dataclass(frozen=True)
class Choice:
    """An arm's rate. `edge`: it is the smallest or largest that was tried, so a better one may lie beyond."""

    learning_rate: float
    edge: bool
    metric: str | None
    higher_is_better: bool | None
    trials: tuple[Trial, ...]


def recorded_choice(root: Path, arm: str) -> Choice | None:
    file = _record_of(root, arm)
    if not file.is_file():
        return None
    values = read_json(file)
    try:
        return Choice(**{**values, "trials": tuple(Trial(**trial) for trial in values["trials"])})
    except (KeyError, TypeError):
        raise InputError(f"{file}: this is no record of a choice; remove it") from None


def _record_of(root: Path, arm: str) -> Path:
    return root / "tuning" / arm / RECORD


def known_choice(root: Path, arm: Arm) -> Choice | None:
    """The rate where there is nothing left to find out.

    Raises:
        InputError: it was chosen from a grid with rates that are not asked for any more.
    """
    if len(arm.rates) == 1:
        return Choice(arm.rates[0], False, None, None, ())
    choice = recorded_choice(root, arm.name)
    before = tuple(t.learning_rate for t in choice.trials if not t.beyond) if choice else arm.rates
    if not set(before) <= set(arm.rates):
        raise InputError(
            f"--out: {root} tuned {arm.name} over {_listed(before)}, now compare.learning_rates asks for "
            f"{_listed(arm.rates)}; rates can be added, not taken away: name another folder, or undo"
        )
    return choice if before == arm.rates else None


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(map(number, rates))


def tune(
    root: Path, arms: Sequence[Arm], seed: int, settings: CompareConfig, at_once: int, progress: Progress
) -> tuple[dict[str, Choice], Problems]:
    """(rate of each arm, arms of which every rate failed). Grids grow at their edges, within the budget."""
    known = {arm.name: choice for arm in arms if (choice := known_choice(root, arm))}
    left, made, failed = [arm for arm in arms if arm.name not in known], dict[str, Choice](), Problems()
    while left:
        grids = [tuning_jobs(root, arm, seed, settings.tuning_rounds) for arm in left]
        problems = execute([job for grid in grids for job in grid.values()], at_once, progress)
        tried, left = zip(left, grids, strict=True), []
        for arm, grid in tried:
            choice = _choose(root, grid, problems)
            if choice is None:
                failed[arm.name] = _why(grid, problems)
            elif choice.edge and settings.may_grow(arm.config, len(grid)):
                left.append(replace(arm, rates=wider(arm.rates, choice.learning_rate)))
            else:
                made[arm.name] = choice
    for arm in arms:
        _record(root, arm, made.get(arm.name))
    return known | made, failed


def _why(grid: Mapping[float, Job], problems: Problems) -> str:
    reasons = dict.fromkeys(problems.get(job.name, NOT_FINITE) for job in grid.values())
    return f"no learning rate worked: {'; '.join(reasons)}"


def wider(rates: tuple[float, ...], best: float) -> tuple[float, ...]:
    """The ascending grid with one rate more beyond the end where its best lies, as far off as its neighbour.

    >>> wider((0.001, 0.003), 0.003)
    (0.001, 0.003, 0.009)
    """
    end, neighbour = (rates[0], rates[1]) if best == rates[0] else (rates[-1], rates[-2])
    return tuple(sorted((*rates, float(f"{end * end / neighbour:.4g}"))))


def _choose(root: Path, grid: Mapping[float, Job], problems: Problems) -> Choice | None:
    """The best of the grid; None if every rate failed."""
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
    return Choice(best, edge, any_summary["primary_metric"], higher, tuple(trials))


def _record(root: Path, arm: Arm, choice: Choice | None) -> None:
    """Write a new choice, with the trials that are none of the arm's own grid marked."""
    if choice is not None:
        trials = [replace(t, beyond=t.learning_rate not in arm.rates) for t in choice.trials]
        write_json(_record_of(root, arm.name), asdict(replace(choice, trials=tuple(trials))))


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
