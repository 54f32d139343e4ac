"""Epsilon of four clients of unequal sizes after each of ten rounds: kept distributions of one step, beside a
fresh PLD accountant each time. Then the noise of each for epsilon 3: searched on a coarse grid of losses and
corrected by the fine one, beside a search on the fine one alone.

    python benchmarks/accounting.py
"""

import math
import time
from collections.abc import Callable

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq

from fedsb.privacy.accounting import Mechanism, _epsilon, _losses_of_one, epsilon
from fedsb.privacy.calibration import calibrate

SIZES, ROUNDS, DELTA, TARGET = (6_000, 12_000, 18_000, 24_000), 10, 1e-5, 3.0

At = Callable[[float], list[Mechanism]]


def spent(size: int, number: int) -> Mechanism:
    return Mechanism(0.6, 96 / size, 16 * number)


def fresh(m: Mechanism) -> float:
    accountant = PLDAccountant()
    accountant.compose(
        PoissonSampledDpEvent(m.sampling_probability, GaussianDpEvent(m.noise_multiplier)), m.steps
    )
    return float(accountant.get_epsilon(DELTA))


def seconds(account: Callable[[Mechanism], float], number: int) -> float:
    began = time.perf_counter()
    for size in SIZES:
        account(spent(size, number))
    return time.perf_counter() - began


def main() -> None:
    theirs = ours = 0.0
    for number in range(1, ROUNDS + 1):
        theirs += seconds(fresh, number)
        ours += seconds(lambda m: epsilon([m], DELTA), number)
    print(f"fresh accountants {theirs:.1f} s, kept distributions {ours:.1f} s: {ours / theirs:.2f} of it")
    calibrating()


def calibrating() -> None:
    theirs = sum(search_seconds(size, fine_alone) for size in SIZES)
    ours = sum(search_seconds(size, lambda at: calibrate(TARGET, DELTA, at)) for size in SIZES)
    print(f"noise by the fine grid alone {theirs:.1f} s, by both {ours:.1f} s: {ours / theirs:.2f} of it")


def search_seconds(size: int, search: Callable[[At], float]) -> float:
    _epsilon.cache_clear()
    _losses_of_one.cache_clear()
    began = time.perf_counter()
    search(lambda noise: [spent(size, ROUNDS)._replace(noise_multiplier=noise)])
    return time.perf_counter() - began


def fine_alone(at: At) -> float:
    root = brentq(
        lambda log: math.log(epsilon(at(math.exp(log)), DELTA) / TARGET),
        math.log(0.5),
        math.log(1.5),
        xtol=2.5e-4,
    )
    return math.exp(root)


if __name__ == "__main__":
    main()
