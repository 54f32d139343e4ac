"""The least noise that keeps to a target epsilon.

Data flow: Renyi DP -> a first guess -> the root by PLD's coarse grid -> the root by the coarse grid corrected
by what the fine one, which has the last word, says there. Most calls ask the fine grid twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from fedsb.errors import InputError
from fedsb.privacy.accounting import COARSE_GRID, Mechanism, epsilon

NOISE_TOLERANCE = 1e-3
"""Relative error of a calibrated noise multiplier, on the side of more noise."""
AIM = 1 - NOISE_TOLERANCE / 2
"""Share of the target to be spent."""
MOST_CORRECTIONS = 5
"""The coarse grid says little where a step's losses are narrower than it; then the fine one is searched."""
MOST_NOISE = 1e4
LEAST_SHARE = 1e-12
"""PLD rounds a tiny epsilon to 0, which has no logarithm."""

Spent = Callable[[float], float]
"""Noise multiplier -> epsilon over its target."""


def calibrate(
    target_epsilon: float,
    delta: float,
    mechanisms_at: Callable[[float], Iterable[Mechanism]],
    *,
    setting: str = "privacy.epsilon",
    cure: str = (
        "raise it, or what else is charged to it must cost less: bases by a lower method.init.budget_share, "
        "scores at clients by a higher privacy.score_noise_multiplier or evaluation.every"
    ),
) -> float:
    """The smallest noise multiplier z, to NOISE_TOLERANCE, at which `mechanisms_at(z)` keep to the target.

    Args:
        setting, cure: what the error names as the target, and what it advises.

    Raises:
        InputError: even MOST_NOISE is not enough: what is fixed in `mechanisms_at` spends it all.
    """

    def spent(noise: float, **options: Any) -> float:
        return epsilon(mechanisms_at(noise), delta, **options) / target_epsilon

    if spent(MOST_NOISE) > 1:
        raise InputError(
            f"{setting}: {target_epsilon:g} at delta {delta:g} cannot be reached with any noise; {cure}"
        )
    guess = _first_guess(partial(spent, accountant="rough rdp"))
    return _finest(spent, partial(spent, grid=COARSE_GRID), guess)


def rough_noise(
    target_epsilon: float, delta: float, mechanisms_at: Callable[[float], Iterable[Mechanism]]
) -> float:
    """As `calibrate`, by Renyi DP alone: fast, and up to a fifth too much."""

    def spent(noise: float) -> float:
        return epsilon(mechanisms_at(noise), delta, accountant="rough rdp") / target_epsilon

    return _root(spent, _first_guess(spent))


def _finest(fine: Spent, coarse: Spent, guess: float) -> float:
    noise, correction = guess, 1.0
    for _ in range(MOST_CORRECTIONS):
        noise = _root(_times(coarse, correction / AIM), noise)
        share = fine(noise)
        if 2 * AIM - 1 <= share <= 1:
            return noise
        correction = share / coarse(noise)
    noise = _root(_times(fine, 1 / AIM), noise)
    while fine(noise) > 1:
        noise *= 1 + NOISE_TOLERANCE / 4
    return noise


def _times(spent: Spent, factor: float) -> Spent:
    return lambda noise: spent(noise) * factor


def _first_guess(spent: Spent) -> float:
    noise = 0.2
    while spent(noise) > 1 and noise < MOST_NOISE:
        noise *= 1.25
    return noise


def _root(spent: Spent, near: float) -> float:
    """The noise at which 1 is spent, or hardly less. Nearly straight on double logarithmic paper."""
    from scipy.optimize import brentq

    def log_spent(log_noise: float) -> float:
        return math.log(max(spent(math.exp(log_noise)), LEAST_SHARE))

    low, high = map(math.log, _bracket(spent, near))
    return math.exp(brentq(log_spent, low, high, xtol=NOISE_TOLERANCE / 16))


def _bracket(spent: Spent, near: float) -> tuple[float, float]:
    """Noise that spends more than 1, and noise that does not: in small steps at first, since little noise has
    large losses, which take long."""
    low = high = near
    step = 1.05
    while spent(high) > 1:
        low, high, step = high, high * step, step**2
    while spent(low) <= 1:
        low, high, step = low / step, low, step**2
    return low, high
