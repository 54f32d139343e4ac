"""The least noise that keeps to a target epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fedsb.errors import InputError
from fedsb.privacy.accounting import AccountantName, Mechanism, epsilon

NOISE_TOLERANCE = 1e-3
"""Relative error of a calibrated noise multiplier, on the side of more noise."""
MOST_NOISE = 1e4
LEAST_SHARE = 1e-12
"""PLD rounds a tiny epsilon to 0, which has no logarithm."""


def calibrate(
    target_epsilon: float, delta: float, mechanisms_at: Callable[[float], Iterable[Mechanism]]
) -> float:
    """The smallest noise multiplier z, to NOISE_TOLERANCE, at which `mechanisms_at(z)` keep to the target.

    Renyi DP, which is fast and never below PLD by much, gives the first bracket.

    Raises:
        InputError: even MOST_NOISE is not enough: what is fixed in `mechanisms_at` spends it all.
    """

    def spent(noise: float, accountant: AccountantName = "pld") -> float:
        return epsilon(mechanisms_at(noise), delta, accountant=accountant)

    if spent(MOST_NOISE) > target_epsilon:
        raise InputError(
            f"privacy.epsilon: {target_epsilon:g} at delta {delta:g} cannot be reached with any noise; "
            "raise privacy.epsilon, or, with bases that are paid for, lower method.init.budget_share"
        )
    high = _first_bracket(lambda noise: spent(noise, "rdp") <= target_epsilon)
    while spent(high) > target_epsilon:
        high *= 1.5
    low = high / 1.5
    while spent(low) <= target_epsilon:
        low, high = low / 1.5, low
    return _between(low, high, lambda noise: spent(noise) / target_epsilon)


def _between(low: float, high: float, share_spent: Callable[[float], float]) -> float:
    """The noise at which the share spent is 1, or hardly less. Nearly straight on double logarithmic
    paper."""
    from scipy.optimize import brentq

    root = brentq(
        lambda log_noise: math.log(max(share_spent(math.exp(log_noise)), LEAST_SHARE)),
        math.log(low),
        math.log(high),
        xtol=NOISE_TOLERANCE / 4,
    )
    noise = math.exp(root)
    while share_spent(noise) > 1:
        noise *= 1 + NOISE_TOLERANCE / 4
    return noise


def _first_bracket(enough: Callable[[float], bool]) -> float:
    noise = 0.2
    while not enough(noise) and noise < MOST_NOISE:
        noise *= 1.25
    return noise
