"""Epsilon of somebody with several units, from the curve of the mechanisms themselves.

How many of k units are in a Poisson sample is binomial, so that a step's sum moves by a binomial number of
clip
norms: a mixture of Gaussians beside one (Ganesh 2024, arXiv 2401.10294), which dp-accounting composes. It is
tight, where k times epsilon (at a larger delta) is neither an upper bound at the same delta nor a close one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

from fedsb.privacy.accounting import LEAST_NOISE_OF_PLD, Mechanism, merged

SIZES = (5, 10)
"""Of the groups that a report names."""
GRID = 0.02
"""Of losses. Wider than for one unit, whose losses are smaller; epsilon is an upper bound still."""


def group_epsilon(mechanisms: Iterable[Mechanism], delta: float, size: int, *, grid: float = GRID) -> float:
    """Epsilon at delta of `size` units together, all present or all blanked; infinite where it is not known.

    0 for no mechanisms.
    """
    together = merged(mechanisms)
    if not together:
        return 0.0
    if any(m.discrete or m.noise_multiplier < LEAST_NOISE_OF_PLD * size for m in together):
        return math.inf
    losses = reduce(lambda first, second: first.compose(second), (_losses(m, size, grid) for m in together))
    return float(losses.get_epsilon_for_delta(delta))


def _losses(m: Mechanism, size: int, grid: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import (
        from_gaussian_mechanism,
        from_mixture_gaussian_mechanism,
    )
    from scipy.stats import binom

    if m.sampling_probability >= 1:
        noise = m.noise_multiplier / (size * math.sqrt(m.steps))
        return from_gaussian_mechanism(noise, value_discretization_interval=grid)
    count = range(size + 1)
    chances = binom.pmf(count, size, m.sampling_probability)
    one = from_mixture_gaussian_mechanism(
        m.noise_multiplier, count, chances, value_discretization_interval=grid
    )
    return one.self_compose(m.steps)
