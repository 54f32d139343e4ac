"""Randomness as an argument: generators derived from (run seed, purpose, round, client).

Different purposes, rounds or clients share no stream, but for chance: torch's CPU generators keep 32 bits of
a seed. That is harmless for bases and dropout; privacy noise comes from the operating system's entropy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "batches", round, client)`."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU torch.Generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A numpy Generator for one purpose."""
    return np.random.default_rng(derive(seed, *path))


@contextmanager
def scoped_global_seed(seed: int, *path: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block only, and put them back afterwards.

    For code that accepts no generator: dropout, and the start values of a fresh head.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        accelerated = (
            torch.accelerator.is_available()
        )  # else its seed would wait, with the stack it came from
        (torch.manual_seed if accelerated else torch.default_generator.manual_seed)(derive(seed, *path))
        yield
