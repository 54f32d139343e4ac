"""Epsilon of Gaussian mechanisms on Poisson samples.

Accounting is dp-accounting's: privacy loss distributions (PLD; Doroshenko et al. 2022, arXiv 2207.04380), an
upper bound up to its grid, with Renyi DP (Mironov et al. 2019, arXiv 1908.10530) as the cross-check.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Any, Literal, NamedTuple

import numpy as np

from fedsb.errors import InputError

AccountantName = Literal["pld", "rdp", "rough rdp"]
WHOLE_ORDERS = [*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024]
"""Orders of Renyi DP that have a closed form; any set gives a bound."""
ORDERS = [1.01, 1.02, 1.05, *(1 + tenths / 10 for tenths in range(1, 50) if tenths % 10), *WHOLE_ORDERS]
"""With broken ones, which large budgets need: series of up to a thousand terms, that take seconds."""
LEAST_NOISE_OF_PLD = 0.05
"""Below this the grid of losses outgrows memory, and epsilon is in the hundreds: Renyi DP serves, an upper
bound too."""
GRID_OF_LOSSES = 1e-4
"""Width of PLD's grid, dp-accounting's own default; losses are rounded up to it."""
COARSE_GRID = 1e-3
"""A sixth to a tenth of the time; epsilon is an upper bound still, further off the more steps there are."""


class Mechanism(NamedTuple):
    """`steps` times: take each record with a probability, sum clipped contributions, add Gaussian noise.

    Attributes:
        noise_multiplier: standard deviation of the noise over the sum's L2 sensitivity.
        sampling_probability: of each record, independently; 1 is no sampling.
        steps: how often, on samples independent of each other.
        discrete: whole numbers, and noise that is the sum of several parties' discrete Gaussians: of these
            Renyi DP bounds the loss (`discrete_noise`), on samples at whole orders alone.
    """

    noise_multiplier: float
    sampling_probability: float
    steps: int
    discrete: bool = False

    @property
    def record(self) -> dict[str, float | bool]:
        """As ledgers have it."""
        return {name: value for name, value in self._asdict().items() if value is not False}


def epsilon(
    mechanisms: Iterable[Mechanism],
    delta: float,
    *,
    accountant: AccountantName = "pld",
    grid: float = GRID_OF_LOSSES,
) -> float:
    """Epsilon at delta of all these together, for neighbours that differ in one record, present or blanked.

    A blanked record adds nothing to any sum, whatever its coins say: with it a release is N(0, s^2) beside
    (1 - q) N(0, s^2) + q N(c, s^2), c within the sensitivity. That is the pair of adding or removing a
    record at a probability that does not change, and the larger of its two directions is taken.

    0 for none; infinite without noise.

    Args:
        grid: of PLD's losses; whatever its width, the result is an upper bound.

    >>> round(epsilon([Mechanism(1.0, 0.01, 1000)], 1e-5), 2)
    1.92
    """
    return _epsilon(tuple(sorted(merged(mechanisms))), delta, accountant, grid)


@lru_cache(maxsize=4096)
def _epsilon(
    mechanisms: tuple[Mechanism, ...], delta: float, accountant: AccountantName, grid: float
) -> float:
    if not mechanisms:
        return 0.0
    if any(m.noise_multiplier <= 0 for m in mechanisms):
        return math.inf
    _check_installed()
    beyond_pld = any(m.discrete or m.noise_multiplier < LEAST_NOISE_OF_PLD for m in mechanisms)
    if accountant != "pld" or beyond_pld:
        orders = WHOLE_ORDERS if accountant == "rough rdp" else _orders(mechanisms)
        return _epsilon_of_event(_event(mechanisms), delta, orders)
    return float(_composed(mechanisms, grid).get_epsilon_for_delta(delta))


def deltas(mechanisms: Iterable[Mechanism], epsilons: np.ndarray, *, grid: float = COARSE_GRID) -> np.ndarray:
    """Delta of all these together at each epsilon: the privacy curve; 1 where PLD does not reach."""
    together = tuple(sorted(merged(mechanisms)))
    if not together:
        return np.zeros(len(epsilons))
    if any(m.noise_multiplier < LEAST_NOISE_OF_PLD for m in together):
        return np.ones(len(epsilons))
    _check_installed()
    if any(m.discrete for m in together):
        return _renyi_deltas(together, epsilons)
    return np.asarray(_composed(together, grid).get_delta_for_epsilon(list(epsilons)), float)


def _orders(mechanisms: Iterable[Mechanism]) -> Sequence[float]:
    """Orders at which the Gaussian's Renyi divergence bounds that of each of these.

    With r = p(x - c) / p(x) of a discrete Gaussian p and whole numbers c, E r^k = e^((k^2 - k) |c|^2 / (2
    std^2)) for whole k, exactly as of the Gaussian. So at a whole order a the binomial sum of E (1 - q + q
    r)^a is the sampled Gaussian's (Mironov et al. 2019, arXiv 1908.10530, section 3.3) to the last digit; at
    others nobody has shown that. The other direction, E (1 - q + q r)^(1 - a), is never more: x -> c - x
    swaps the two distributions, as there.
    """
    sampled = any(m.discrete and m.sampling_probability < 1 for m in mechanisms)
    return WHOLE_ORDERS if sampled else ORDERS


def _renyi_deltas(mechanisms: Sequence[Mechanism], epsilons: np.ndarray) -> np.ndarray:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_orders(mechanisms))
    with _without_warnings():
        accountant.compose(_event(mechanisms))
        return np.array([accountant.get_delta(float(at)) for at in epsilons])


def _composed(mechanisms: Iterable[Mechanism], grid: float) -> Any:
    return reduce(lambda first, second: first.compose(second), (_losses(m, grid) for m in mechanisms))


def _losses(m: Mechanism, grid: float) -> Any:
    """The privacy loss distribution of all steps. Without sampling they are one step of less noise."""
    if m.sampling_probability >= 1:
        return _losses_of_one(m.noise_multiplier / math.sqrt(m.steps), 1.0, grid)
    return _losses_of_one(m.noise_multiplier, m.sampling_probability, grid).self_compose(m.steps)


@lru_cache(maxsize=64)
def _losses_of_one(noise_multiplier: float, sampling_probability: float, grid: float) -> Any:
    """Kept, because every round asks for the same one with more steps, and this is the slow part."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_probability, value_discretization_interval=grid
    )


def _event(mechanisms: Iterable[Mechanism]) -> Any:
    """All these together, as dp-accounting has it."""
    from dp_accounting import (
        ComposedDpEvent,
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
    )

    def step(m: Mechanism) -> Any:
        gaussian = GaussianDpEvent(m.noise_multiplier)
        return (
            PoissonSampledDpEvent(m.sampling_probability, gaussian)
            if m.sampling_probability < 1
            else gaussian
        )

    return ComposedDpEvent([SelfComposedDpEvent(step(m), m.steps) for m in mechanisms])


def _epsilon_of_event(event: Any, delta: float, orders: Sequence[float]) -> float:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders)
    with _without_warnings():
        accountant.compose(event)
        return float(accountant.get_epsilon(delta))


class Selection(NamedTuple):
    """The best of a random number of equal runs, of which the others stay hidden.

    Attributes:
        run: what one of them releases.
        mean_runs: of a geometric number, which is 1 at least.
    """

    run: tuple[Mechanism, ...]
    mean_runs: float


def selected_epsilon(selections: Iterable[Selection], mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at delta of these selections and mechanisms together, by Renyi DP (Papernot and Steinke 2022,
    arXiv 2110.03620, theorem 2 with eta = 1)."""
    from dp_accounting.dp_event import ComposedDpEvent, RepeatAndSelectDpEvent

    selections, together = list(selections), merged(mechanisms)
    every = [m for selection in selections for m in selection.run] + list(together)
    if any(m.noise_multiplier <= 0 for m in every):
        return math.inf
    _check_installed()
    chosen = [RepeatAndSelectDpEvent(_event(s.run), s.mean_runs, 1.0) for s in selections]
    return _epsilon_of_event(ComposedDpEvent([*chosen, _event(together)]), delta, _orders(every))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences the warnings of orders whose series does not end, which are left out."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one of all their steps, in order: fewer compositions, the same distribution."""
    steps: Counter[Mechanism] = Counter()
    for m in mechanisms:
        steps[m._replace(steps=1)] += m.steps
    return tuple(m._replace(steps=count) for m, count in steps.items() if count)


def _check_installed() -> None:
    try:
        import dp_accounting  # noqa: F401
    except ImportError:
        raise InputError(
            "privacy: the package dp-accounting is needed and missing; pip install 'fedsb[dp]'"
        ) from None
