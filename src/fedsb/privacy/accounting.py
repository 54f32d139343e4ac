"""Epsilon of Gaussian mechanisms on Poisson samples, and the noise that a target epsilon needs.

Accounting is dp-accounting's: privacy loss distributions (PLD; Doroshenko et al. 2022, arXiv 2207.04380), an
upper bound up to its grid, with Renyi DP (Mironov et al. 2019, arXiv 1908.10530) as the cross-check.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from fedsb.errors import InputError

AccountantName = Literal["pld", "rdp"]
NOISE_TOLERANCE = 1e-3
"""Relative error of a calibrated noise multiplier, on the side of more noise."""
MOST_NOISE = 1e4
ORDERS = [*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024]
"""Of Renyi DP. Any set gives a bound; whole numbers have a closed form, broken ones a series that may not
end."""
LEAST_SHARE = 1e-12
"""PLD rounds a tiny epsilon to 0, which has no logarithm."""
LEAST_NOISE_OF_PLD = 0.05
"""Below this the grid of losses outgrows memory, and epsilon is in the hundreds: Renyi DP serves, an upper
bound too."""


class Mechanism(NamedTuple):
    """`steps` times: take each record with a probability, sum clipped contributions, add Gaussian noise.

    Attributes:
        noise_multiplier: standard deviation of the noise over the sum's L2 sensitivity.
        sampling_probability: of each record, independently; 1 is no sampling.
        steps: how often, on samples independent of each other.
    """

    noise_multiplier: float
    sampling_probability: float
    steps: int


def epsilon(mechanisms: Iterable[Mechanism], delta: float, *, accountant: AccountantName = "pld") -> float:
    """Epsilon at delta of all these together, for neighbours that differ by adding or removing one record.

    0 for none; infinite without noise.

    >>> round(epsilon([Mechanism(1.0, 0.01, 1000)], 1e-5), 2)
    1.92
    """
    return _epsilon(_merged(mechanisms), delta, accountant)


@lru_cache(maxsize=4096)
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float, accountant: AccountantName) -> float:
    if not mechanisms:
        return 0.0
    if any(m.noise_multiplier <= 0 for m in mechanisms):
        return math.inf
    if any(m.noise_multiplier < LEAST_NOISE_OF_PLD for m in mechanisms):
        accountant = "rdp"
    dpa, used = _library(accountant)
    for m in mechanisms:
        gaussian = dpa.GaussianDpEvent(m.noise_multiplier)
        sampled = (
            gaussian
            if m.sampling_probability >= 1
            else dpa.PoissonSampledDpEvent(m.sampling_probability, gaussian)
        )
        used.compose(sampled, m.steps)
    return float(used.get_epsilon(delta))


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


def _merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one of all their steps: fewer compositions, the same distribution."""
    steps: Counter[tuple[float, float]] = Counter()
    for m in mechanisms:
        steps[m.noise_multiplier, m.sampling_probability] += m.steps
    return tuple(Mechanism(*key, count) for key, count in sorted(steps.items()) if count)


def _library(accountant: AccountantName) -> tuple[Any, Any]:
    try:
        import dp_accounting as dpa
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise InputError(
            "privacy: the package dp-accounting is needed and missing; pip install 'fedsb[dp]'"
        ) from None
    return dpa, PLDAccountant() if accountant == "pld" else RdpAccountant(ORDERS)
