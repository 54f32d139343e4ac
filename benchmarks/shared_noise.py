"""Noise that clients share beside noise that each adds by itself, at equal epsilon for who reads the sum.

    python benchmarks/shared_noise.py

The noise of the mean, measured in secure sums of updates that are zero; and what a share costs a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from common import verdict

from fedsb.federation.secure.here import Here
from fedsb.federation.secure.noise_shares import NoiseShares
from fedsb.federation.secure.server import SecureSum, new_terms
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ClientPlan

EPSILON, DELTA, ROUNDS, SIZE = 8.0, 1e-5, 50, 100_000


def main() -> None:
    for clients, promised in ((3, 0.42), (10, 0.68)):
        plan = ClientPlan(
            num_clients=clients, expected_cohort=clients, rounds=ROUNDS, clip_norm=1.0, fewest=clients
        ).calibrated(EPSILON, DELTA)
        alone = plan.noise_multiplier * plan.clip_norm / clients**0.5  # each adds it all: the mean has this
        together = _noise_of_the_mean(plan, clients)
        print(f"{clients} clients, epsilon {EPSILON:g}: {alone:.4f} alone, {together:.4f} shared")
        verdict("standard deviation of the mean, shared / alone", together / alone, 1.01 - promised)
    began = time.process_time()
    shares = NoiseShares(plan, clients, 917_504)
    shares.integers(Summand(torch.zeros(917_504)), Keystream.fresh())
    print(f"a share of the noise on 917,504 numbers: {time.process_time() - began:.2f} s of a client")


def _noise_of_the_mean(plan: ClientPlan, clients: int) -> float:
    rules, shares = Rules("", 1.0, 8.0, clients), NoiseShares(plan, clients, SIZE)

    def work(asked: Sequence[int], question_to: Callable[[int], bytes]) -> Iterator[tuple[int, Summand]]:
        for client in asked:
            question_to(client)
            yield client, Summand(torch.zeros(SIZE))

    here = Here(
        rules, work, lambda client, summand: shares.integers(summand, Keystream.fresh()), shares.coding
    )
    terms = new_terms("train", 1, range(clients))
    total = SecureSum(here, terms, rules, b"q", shares.coding, SIZE).total()
    return float(total.values.std()) / clients


if __name__ == "__main__":
    main()
