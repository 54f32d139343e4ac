"""Choose each arm's learning rate on the held-out training rows. A grid whose best lies at its edge grows; a
choice stays until another grid is asked for."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsb.common.files import read_json, write_json
from fedsb.compare.arms import Arm, Trying, number, selection_jobs, tuning_jobs
from fedsb.compare.config import CompareConfig
from fedsb.compare.execute import HooksOf, Problems, execute, no_hooks
from fedsb.compare.progress import Progress
from fedsb.errors import InputError
from fedsb.runner.folder import finished_summary

RECORD = "tuning.json"
DRAWN = "drawn.json"
"""In an arm's tuning folder: the rates that private selection drew, which nobody else may know."""
NOT_FINITE = "its metric was not finite"


@dataclass(frozen=True)
class Trial:
    """One rate that was tried. `value` is the final primary metric, of several seeds the mean, None if one of
    them failed or was not finite; `run`: the first seed's; `beyond`: the rate is none of the grid that was
    asked for, which had its best at that edge."""

    learning_rate: float
    value: float | None
    run: str
    problem: str | None
    beyond: bool = False


@dataclass(frozen=True)
class Choice:
    """An arm's rate. `edge`: it is the smallest or largest that was tried, so a better one may lie beyond.
    `drawn`: by private selection, which hides what else was tried."""

    learning_rate: float
    edge: bool
    metric: str | None
    higher_is_better: bool | None
    trials: tuple[Trial, ...]
    drawn: bool = False


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
    if choice is not None and choice.drawn and set(arm.rates) >= {t.learning_rate for t in choice.trials}:
        return choice
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
    root: Path,
    arms: Sequence[Arm],
    seed: int,
    settings: CompareConfig,
    at_once: int,
    progress: Progress,
    hooks: HooksOf = no_hooks,
    *,
    after: int = 0,
) -> tuple[dict[str, Choice], Problems]:
    """(rate of each arm, arms of which every rate failed). Grids grow at their edges, within the budget.

    after: how many runs follow when all rates are chosen.
    """
    known = {arm.name: choice for arm in arms if (choice := known_choice(root, arm))}
    left, made, failed = [arm for arm in arms if arm.name not in known], dict[str, Choice](), Problems()
    while left:
        grids = [_tried(root, arm, seed, settings) for arm in left]
        jobs = [job for grid in grids for trying in grid for job in trying.jobs]
        problems = execute(jobs, at_once, progress, hooks, after=after)
        tried, left = zip(left, grids, strict=True), []
        for arm, grid in tried:
            selects = settings.selects(arm.config)
            choice = _choose(root, grid, problems, drawn=selects)
            if choice is None:
                failed[arm.name] = _why(grid, problems)
            elif choice.edge and not selects and settings.may_grow(arm.config, len(grid)):
                left.append(replace(arm, rates=wider(arm.rates, choice.learning_rate)))
            else:
                made[arm.name] = choice
    for arm in arms:
        _record(root, arm, made.get(arm.name))
    return known | made, failed


def _tried(root: Path, arm: Arm, seed: int, settings: CompareConfig) -> list[Trying]:
    """The arm's grid, or what private selection drew from it."""
    if not settings.selects(arm.config):
        seeds = [seed + i for i in range(settings.tuning_seeds)]
        return tuning_jobs(root, arm, seeds, settings.tuning_rounds)
    file = root / "tuning" / arm.name / DRAWN
    if not file.is_file():
        assert settings.selected_runs is not None
        mean = settings.selected_runs
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"mean": mean, "rates": drawn(arm.rates, mean)}, private=True)
    return selection_jobs(root, arm, read_json(file)["rates"], seed, settings.tuning_rounds)


def drawn(rates: Sequence[float], mean_runs: float) -> list[float]:
    """Rates by chance, a geometric number of them that is `mean_runs` on average; from the operating system,
    since the number must stay unknown."""
    chance = secrets.SystemRandom()
    chosen = [chance.choice(rates)]
    while chance.random() >= 1 / mean_runs:
        chosen.append(chance.choice(rates))
    return chosen


def _why(grid: Sequence[Trying], problems: Problems) -> str:
    reasons = dict.fromkeys(_problem(trying, problems) or NOT_FINITE for trying in grid)
    return f"no learning rate worked: {'; '.join(reasons)}"


def wider(rates: tuple[float, ...], best: float) -> tuple[float, ...]:
    """The ascending grid with one rate more beyond the end where its best lies, as far off as its neighbour.

    >>> wider((0.001, 0.003), 0.003)
    (0.001, 0.003, 0.009)
    """
    end, neighbour = (rates[0], rates[1]) if best == rates[0] else (rates[-1], rates[-2])
    return tuple(sorted((*rates, float(f"{end * end / neighbour:.4g}"))))


def _choose(root: Path, grid: Sequence[Trying], problems: Problems, *, drawn: bool = False) -> Choice | None:
    """The best of the grid; None if every rate failed. drawn: by chance, so that it has no edge."""
    trials: list[Trial] = []
    any_summary: dict[str, Any] = {}
    for trying in grid:
        summaries = [finished_summary(job.folder) for job in trying.jobs]
        any_summary = next((summary for summary in summaries if summary), any_summary)
        value = _mean([_primary(summary) for summary in summaries])
        problem = _problem(trying, problems) or (None if value is not None else NOT_FINITE)
        first = trying.jobs[0].folder.relative_to(root).as_posix()
        trials.append(Trial(trying.rate, value, first, problem))
    higher = any_summary.get("higher_is_better", True)
    best = best_rate(trials, higher_is_better=higher)
    if best is None:
        return None
    tried = [trying.rate for trying in grid]
    edge = not drawn and best in (min(tried), max(tried))
    return Choice(best, edge, any_summary["primary_metric"], higher, tuple(trials), drawn)


def _problem(trying: Trying, problems: Problems) -> str | None:
    """Why the first of its runs failed that did."""
    return next((problems[job.name] for job in trying.jobs if job.name in problems), None)


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one is not known: leaving out the seed under which a rate diverged would flatter it."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _primary(summary: dict[str, Any] | None) -> float | None:
    """The primary metric at the end of a run; None if there is none."""
    return summary["final"].get(summary["primary_metric"]) if summary else None


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


def _best_trial(choice: Choice) -> Trial:
    """Of the runs at the chosen rate, the best."""
    sign = 1 if choice.higher_is_better else -1
    tried = [t for t in choice.trials if t.learning_rate == choice.learning_rate and t.value is not None]
    return max(tried, key=lambda trial: sign * (trial.value or 0.0))


def as_json(arm: str, choice: Choice) -> list[dict[str, Any]]:
    """The arm's lines of comparison.json's `tuning`; of a rate that was drawn the best alone."""
    if choice.drawn:
        choice = replace(choice, trials=(_best_trial(choice),))
    return [
        {
            "method": arm,
            **asdict(trial),
            "metric": choice.metric,
            "chosen": trial.learning_rate == choice.learning_rate,
        }
        for trial in choice.trials
    ]
