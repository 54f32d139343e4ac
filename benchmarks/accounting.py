"""Epsilon of four clients of unequal sizes after each of ten rounds: kept distributions of one step, beside a
fresh PLD accountant each time.

    python benchmarks/accounting.py
"""

import time
from collections.abc import Callable

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

from fedsb.privacy.accounting import Mechanism, epsilon

SIZES, ROUNDS, DELTA = (6_000, 12_000, 18_000, 24_000), 10, 1e-5


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


if __name__ == "__main__":
    main()
