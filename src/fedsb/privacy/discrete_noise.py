"""Discrete Gaussian noise, whole numbers k with chances in proportion to exp(-k^2 / (2 std^2)).

Clients that each add some to whole numbers give together, for a std of LEAST_STD or more, what one discrete
Gaussian of the summed variance would: its Renyi divergence of a shift is at most that of the Gaussian
(Canonne et al. 2020, arXiv 2004.00010; of sums Kairouz et al. 2021, arXiv 2102.06387, theorem 1).
"""

from __future__ import annotations

import math

import numpy as np

from fedsb.privacy.keystream import Keystream

LEAST_STD = 16.0
"""From which a sum of discrete Gaussians is one but for a part in 10^500 (`excess`)."""
MORE = 1.9
"""Draws for each number that is kept, a little more than are needed on average."""


def discrete_gaussian(count: int, std: float, stream: Keystream) -> np.ndarray:
    """So many draws, int64: discrete Laplace ones, of which some are kept (Canonne et al. 2020, algorithm 3).

    Chances are compared with 64 bits of the stream, in fp64: each is right to a part in 2^53.
    """
    kept: list[np.ndarray] = []
    found, scale = 0, math.floor(std) + 1
    while found < count:
        drawn = _discrete_laplace(int(MORE * (count - found)) + 64, scale, stream)
        off = (np.abs(drawn) - std**2 / scale) / std
        kept.append(drawn[_happens(off**2 / 2, stream)])
        found += len(kept[-1])
    return np.concatenate(kept)[:count]


def _discrete_laplace(count: int, scale: int, stream: Keystream) -> np.ndarray:
    """Some draws of k with chances in proportion to exp(-|k| / scale), of so many tried (algorithm 2)."""
    bits = stream.read(count)
    whole = bits[bits <= np.uint64(2**64 // scale * scale - 1)]
    within = (whole % np.uint64(scale)).astype(np.int64)
    within = within[_happens(within / scale, stream)]
    uniform = (stream.read(len(within)).astype(np.float64) + 0.5) * 2.0**-64
    size = within + scale * np.floor(-np.log(uniform)).astype(np.int64)
    negative = (stream.read(len(size)) & np.uint64(1)).astype(bool)
    return np.where(negative, -size, size)[~(negative & (size == 0))]


def _happens(cost: np.ndarray, stream: Keystream) -> np.ndarray:
    """For each, whether an event of the chance exp(-cost) happens."""
    limit = np.minimum(np.exp(-cost) * 2.0**64, np.nextafter(2.0**64, 0.0))
    return stream.read(len(cost)) < limit.astype(np.uint64)


def excess(parties: int, std: float) -> float:
    """By how much, relatively, a sum of so many may differ from one discrete Gaussian (tau of Kairouz et al.
    2021, theorem 1)."""
    return 10 * sum(math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in range(1, parties))
