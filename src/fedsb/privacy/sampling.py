"""Poisson sampling: every record joins each batch by its own coin, as the accounting assumes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsb.privacy.keystream import Keystream


def poisson_batches(
    num_records: int, probability: float, steps: int, coins: Keystream
) -> Iterator[list[int]]:
    """`steps` independent batches of record indices, ascending. A batch may be empty.

    The sizes vary: about num_records * probability each. Amplification holds only while nobody who sees the
    results learns which records were in which batch, so the key of `coins` must be secret from them.
    """
    for _ in range(steps):
        yield poisson_sample(num_records, probability, coins)


def poisson_sample(num_records: int, probability: float, coins: Keystream) -> list[int]:
    """One such batch. The probability is exact to 2^-64, and never more than what is accounted."""
    if probability >= 1:
        return list(range(num_records))
    return np.flatnonzero(coins.read(num_records) < np.uint64(int(probability * 2.0**64))).tolist()
