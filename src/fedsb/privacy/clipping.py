"""Vectors cut to an L2 norm, and their sum, which knows how far one of them can move it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def clip(vector: Float[Tensor, "size"], clip_norm: float) -> tuple[Float[Tensor, "size"], bool]:
    """The vector in fp64, scaled down to `clip_norm` if it is longer; and whether it was within.

    Guarantees: the result's norm is at most `clip_norm`. A vector that is not finite becomes zero.
    """
    exact = vector.double()
    norm = exact.norm().item()
    if not torch.isfinite(exact).all():
        return torch.zeros_like(exact), False
    return (exact, True) if norm <= clip_norm else (exact * (clip_norm / norm), False)


class ClippedSum:
    """sum(clip(v_i)) in fp64, one accumulator whatever the number of vectors.

    Attributes:
        count: vectors added so far.
        count_within: how many of them needed no clipping.
    """

    def __init__(self, size: int, clip_norm: float):
        self.clip_norm = clip_norm
        self.total = torch.zeros(size, dtype=torch.float64)
        self.count = self.count_within = 0

    @property
    def sensitivity(self) -> float:
        """Largest L2 change of `total` if one vector more or less is added."""
        return self.clip_norm

    def add(self, vector: Float[Tensor, "size"]) -> None:
        clipped, within = clip(vector, self.clip_norm)
        self.total += clipped
        self.count += 1
        self.count_within += within
