"""Numbers as integers modulo 2^32 or 2^64, small enough that the sum of all addends does not wrap around."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_LOSS = 1000.0
"""Of a client's mean loss, as it is added up."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers from -largest to largest, of which so many are added; what lies beyond is cut.

    Attributes:
        bits: 32 or 64, of every integer.
    """

    bits: int
    largest: float
    addends: int

    @property
    def dtype(self) -> Any:
        """Of the integers."""
        return np.uint32 if self.bits == 32 else np.uint64

    @cached_property
    def most(self) -> int:
        """The integer of `largest`."""
        return (2 ** (self.bits - 1) - 1) // self.addends

    @property
    def step(self) -> float:
        """Between two numbers that can be told apart: an addend is off by half of it at most."""
        return self.largest / self.most

    def encoded(self, values: Tensor, factor: float = 1.0) -> Tensor:
        """`factor * values` as whole numbers in fp64, which hold them to 53 bits."""
        most = float(self.most)
        if most > self.most:
            most = math.nextafter(most, 0.0)
        return values.to(torch.float64, copy=True).mul_(factor / self.step).clamp_(-most, most).round_()

    def wrapped(self, integers: np.ndarray) -> np.ndarray:
        """Signed integers as they travel."""
        return integers.astype(self.dtype)

    def decoded(self, total: np.ndarray) -> Tensor:
        """A sum of what `wrapped` gave, in fp64."""
        signed = total.view(np.int32 if self.bits == 32 else np.int64)
        return torch.from_numpy(signed.astype(np.float64)).mul_(self.step)
