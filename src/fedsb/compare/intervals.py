"""Paired t intervals of differences over seeds, corrected for how many are looked at together."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
"""Of all intervals of a comparison together."""
FEWEST_SEEDS = 3
"""With fewer there is no interval: the deviation of two differences says next to nothing."""
MORE_SEEDS = (5, 10, 20, 50)
"""With how many a comparison may be told to look again."""


class Interval(NamedTuple):
    """Where the true difference lies, in the metric's own unit."""

    low: float
    high: float

    @property
    def separable(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def paired_interval(differences: Sequence[float], looked_at: int) -> Interval | None:
    """Student's t interval of the mean difference, by Bonferroni so wide that all `looked_at` intervals hold
    together with CONFIDENCE; None with fewer than FEWEST_SEEDS differences."""
    if len(differences) < FEWEST_SEEDS:
        return None
    middle, reach = mean(differences), spreads_to_show(len(differences), looked_at) * stdev(differences)
    return Interval(middle - reach, middle + reach)


def spreads_to_show(seeds: int, looked_at: int) -> float:
    """How many times its sample deviation over the seeds a mean difference must be, to be told from none."""
    from scipy.stats import t

    tail = (1 - CONFIDENCE) / 2 / max(1, looked_at)
    return float(t.isf(tail, seeds - 1)) / sqrt(seeds)


def what_shows(seeds: int, looked_at: int) -> str:
    """
    >>> what_shows(3, 21)
    'with 3 seeds a difference shows from 11.8 times its sd over them on, with 5 from 3.1 times'
    """
    seeds = max(seeds, FEWEST_SEEDS)
    more = next((count for count in MORE_SEEDS if count > seeds), 2 * seeds)
    now, then = (f"{spreads_to_show(count, looked_at):.1f} times" for count in (seeds, more))
    return f"with {seeds} seeds a difference shows from {now} its sd over them on, with {more} from {then}"
