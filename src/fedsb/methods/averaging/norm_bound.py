"""A bound on how far one update may lie from what was broadcast: beyond it, it is refused or scaled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class NormBound:
    """The largest L2 norm of (update - broadcast) over all its numbers, and what is done beyond it."""

    largest: float
    over: Literal["reject", "scale"] = "reject"

    def within(self, vector: Float[Tensor, "n"], before: Float[Tensor, "n"]) -> tuple[Tensor, float]:
        """The vector, brought back to the bound if it lies beyond, and how far it lay from `before`."""
        change = vector.double() - before.double()
        norm = float(torch.linalg.vector_norm(change))
        if norm <= self.largest:
            return vector, norm
        return (before.double() + change * (self.largest / norm)).float(), norm
