"""Poisson sampling: every record joins each batch by its own coin, as the accounting assumes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsb.privacy.keystream import Keystream


def cyclic_batches(
    units: int, probability: float, bands: int, first: int, steps: int, coins: Keystream
) -> Iterator[list[int]]:
    """Independent batches of the steps `first`, `first` + 1, ..., ascending; may be empty. Each draws from
    those units whose number is the step's modulo `bands`: of one band from all.

    The sizes vary: about units * probability / bands each. Amplification holds only while nobody who sees the
    results learns which records were in which batch, so the key of `coins` must be secret from them.
    """
    for step in range(first, first + steps):
        place = step % bands
        drawn = poisson_sample(len(range(place, units, bands)), probability, coins)
        yield [place + bands * i for i in drawn]


def poisson_sample(num_records: int, probability: float, coins: Keystream) -> list[int]:
    """One such batch. The probability is exact to 2^-64, and never more than what is accounted."""
    if probability >= 1:
        return list(range(num_records))
    return np.flatnonzero(coins.read(num_records) < np.uint64(int(probability * 2.0**64))).tolist()
