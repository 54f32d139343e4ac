"""Poisson sampling: every record joins each batch by its own coin, as the accounting assumes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def poisson_batches(
    num_records: int, probability: float, steps: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """`steps` independent batches of record indices, ascending. A batch may be empty.

    The sizes vary: about num_records * probability each. Amplification holds only while nobody who sees the
    results learns which records were in which batch, so `rng` must be secret from them.
    """
    for _ in range(steps):
        yield poisson_sample(num_records, probability, rng)


def poisson_sample(num_records: int, probability: float, rng: np.random.Generator) -> list[int]:
    """One such batch."""
    return np.flatnonzero(rng.random(num_records) < probability).tolist()
