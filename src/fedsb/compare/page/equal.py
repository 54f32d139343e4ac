"""The score each method had when it had sent as much, or done as many rounds, as the one that does least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean
from typing import NamedTuple

from fedsb.compare.page.load import Compared
from fedsb.report import facts
from fedsb.report.load import Run
from fedsb.report.units import human_bytes, plural

Spent = Callable[[Run], Mapping[int, float]]
"""Run -> what it had spent at the end of each round."""


class Limit(NamedTuple):
    """A column of the result: the score at the last round that was scored within `most`."""

    title: str
    spent: Spent
    most: float

    def mean_of(self, comparison: Compared, method: str) -> float | None:
        """Over the seeds; None where a seed has no score within."""
        scores = [self._score(run, comparison.round_metric) for run in comparison.folders(method)]
        known = [score for score in scores if score is not None]
        return mean(known) if known and len(known) == len(scores) else None

    def _score(self, run: Run, metric: str) -> float | None:
        spent = self.spent(run)
        within = [score for at, score in facts.curve(run, metric) if at > 0 and spent[at] <= self.most]
        return within[-1] if within else None


def equal_limits(comparison: Compared) -> list[Limit]:
    """Equal bytes, and equal rounds where methods differ in them; none of one method."""
    candidates = (
        (facts.running_total, lambda most: f"at {human_bytes(most)}"),
        (_rounds, lambda most: f"after {plural(int(most), 'round')}"),
    )
    limits = []
    for spent, title in candidates:
        ends = _ends(comparison, spent)
        if len(ends) > 1 and min(ends) < max(ends):
            limits.append(Limit(title(min(ends)), spent, min(ends)))
    return limits


def _rounds(run: Run) -> dict[int, float]:
    return {entry.number: entry.number for entry in run.rounds}


def _ends(comparison: Compared, spent: Spent) -> list[float]:
    """The most that any seed of each method spent in all."""
    runs = [comparison.folders(name) for name in comparison.summary]
    return [max(max(spent(run).values(), default=0) for run in held) for held in runs if held]
