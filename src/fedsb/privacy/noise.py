"""Gaussian noise from the operating system's entropy, a new stream for every release.

Never from the run's seed, and never from torch's generators: on a CPU those keep 32 bits of their seed, few
enough to try them all.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

from fedsb.seeding import derive

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

    def stream(self, *path: str | int) -> np.random.Generator:
        """A generator for one release. Without an insecure seed, `path` plays no part: no stream is ever
        given out twice."""
        if self.insecure_seed is None:
            return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))
        return np.random.default_rng(derive(self.insecure_seed, "noise", *path))


def gaussian_like(tensor: Tensor, std: float, stream: np.random.Generator) -> Tensor:
    """Noise N(0, std^2) of the tensor's shape, in fp64 on its device."""
    draws = stream.standard_normal((DRAWS, *tensor.shape)).sum(axis=0) / DRAWS**0.5
    return torch.from_numpy(np.asarray(std * draws)).to(tensor.device)


def add_noise(tensor: Tensor, std: float, stream: np.random.Generator) -> Tensor:
    """The tensor plus noise, summed in fp64 and rounded once to the tensor's dtype."""
    return (tensor.double() + gaussian_like(tensor, std, stream)).to(tensor.dtype)
