"""Gaussian noise from ChaCha20, under a new key of the operating system for every release.

Never from the run's seed, and never from a statistical generator, of which some outputs give the rest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsb.privacy.keystream import Keystream

DRAWS = 4
"""Normal draws that make one, against attacks on the floating-point grid of a single draw (Holohan and
Braghin 2021, arXiv 2107.10138)."""


class NoiseSource:
    """Where a run's noise comes from.

    Args:
        insecure_seed: for tests alone: noise that can be repeated, and that protects nobody.
    """

    def __init__(self, insecure_seed: int | None = None):
        self.insecure_seed = insecure_seed

    def stream(self, *path: str | int) -> Keystream:
        """The stream of one release. Without an insecure seed, `path` plays no part: no key is ever given out
        twice."""
        if self.insecure_seed is None:
            return Keystream.fresh()
        return Keystream.derived(str(self.insecure_seed).encode(), "noise", *path)


def standard_normals(count: int, stream: Keystream) -> np.ndarray:
    """So many N(0, 1) in fp64, by the inverse of the distribution function.

    One bit is the sign and 63 are the place in its half: the farthest number is 9.16, the chance of more than
    that 5e-20. Small places keep all their digits, so the tails are as exact as the middle.
    """
    from scipy.special import ndtri

    bits = stream.read(count)
    place = ((bits >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
    return np.where(bits & np.uint64(1), -1.0, 1.0) * ndtri(place)


def gaussian_like(tensor: Tensor, std: float, stream: Keystream) -> Tensor:
    """Noise N(0, std^2) of the tensor's shape, in fp64 on its device."""
    total = sum(standard_normals(tensor.numel(), stream) for _ in range(DRAWS)) / DRAWS**0.5
    return torch.from_numpy(std * total).view(tensor.shape).to(tensor.device)


def add_noise(tensor: Tensor, std: float, stream: Keystream) -> Tensor:
    """The tensor plus noise, summed in fp64 and rounded once to the tensor's dtype."""
    return (tensor.double() + gaussian_like(tensor, std, stream)).to(tensor.dtype)
