"""Scores with the number of examples behind them and a 95 % interval.

The interval says how much the score would move with other test examples of the same kind. It knows nothing of
other seeds, other training data or other prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from fedsb.tasks.task import Measurement

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    value: float
    low: float
    high: float
    count: int  # examples
    interval: Literal["wilson", "bootstrap"]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def scores(
    measurements: Sequence[Measurement], rng: np.random.Generator, resamples: int = RESAMPLES
) -> dict[str, Score]:
    """Every metric with its interval: Wilson's for shares, the bootstrap's for all else."""
    return {name: s for measured in measurements for name, s in _scores(measured, rng, resamples).items()}


def _scores(measured: Measurement, rng: np.random.Generator, resamples: int) -> dict[str, Score]:
    values, count = measured.all(), measured.count
    ends = bootstrap(measured, rng, resamples) if set(values) - measured.shares else {}
    return {
        name: Score(value, *wilson(round(value * count), count), count, "wilson")
        if name in measured.shares
        else Score(value, *ends[name], count, "bootstrap")
        for name, value in values.items()
    }


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"expected 0 to {count} successes of at least one example, got {successes}")
    from scipy.stats import binomtest

    ends = binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def bootstrap(
    measured: Measurement, rng: np.random.Generator, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """The middle 95 % of each metric over examples drawn again with replacement (Efron 1979,
    doi 10.1214/aos/1176344552). Draws for which a metric is not finite are left out of it."""
    drawn = [measured.metrics(rng.integers(measured.count, size=measured.count)) for _ in range(resamples)]
    return {name: _middle([metrics[name] for metrics in drawn]) for name in drawn[0]}


def mean_of_shares(parts: Sequence[Score]) -> Score:
    """The plain mean of several data sets' shares, its interval from theirs (Zou and Donner 2008,
    doi 10.1002/sim.3095): distances to the ends add up as independent errors do."""
    mean = sum(part.value for part in parts) / len(parts)
    below = math.hypot(*(part.value - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.value for part in parts)) / len(parts)
    return Score(mean, mean - below, mean + above, sum(part.count for part in parts), "wilson")


def _middle(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan, math.nan
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)
