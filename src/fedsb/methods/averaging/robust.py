"""Averages that a few poisoned updates cannot move far, in place of the weighted mean.

    median:        of each number by itself (Yin et al. 2018, arXiv 1803.01498, definition 1)
    trimmed mean:  of each number by itself, the largest and the smallest left out (definition 2)

Both need all updates of the round at once, cohort x numbers x 4 bytes, where the weighted mean keeps one
accumulator. They count clients equally: a count of examples is a client's own claim. What they give goes
through the method's own aggregation as if one client had sent it.

Where fewer updates than FEWEST can be used, what was broadcast takes the places of the others: each number
then moves as far as two clients agree, and one that is refused, or stays away, neither ends the run nor
leaves the rest to another's mercy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.methods.method import (
    Aggregation,
    AggregationInputs,
    Averaged,
    Upload,
    aggregate_one,
    current_vector,
)

Average = Literal["mean", "median", "trimmed-mean"]

FEWEST = 3
"""With fewer updates a median or a trimmed mean would be the mean."""
BLOCK = 2**20
"""Numbers sorted at a time, over all clients together."""


def trimmed_mean(updates: Float[np.ndarray, "clients n"], cut: int) -> Float[np.ndarray, "n"]:
    """Mean of each column without its `cut` smallest and `cut` largest entries, in fp64."""
    ordered = np.sort(updates, axis=0)[cut : len(updates) - cut]
    return np.asarray(ordered.mean(axis=0, dtype=np.float64))


def cut_of(average: Average, trim: float, count: int) -> int:
    """How many of so many updates are left out at each end; for the median all but one or two."""
    return (count - 1) // 2 if average == "median" else max(1, int(trim * count + 1e-9))


def robust(aggregation: Aggregation, average: Average, trim: float) -> Aggregation:
    """The method's aggregation over another average than the weighted mean.

    Args:
        trim: trimmed-mean: share of the round's updates left out at each end; at least one is.
    """

    def finish(updates: _All) -> Averaged:
        vectors = updates.vectors + [current_vector(updates.frame)] * (FEWEST - len(updates.vectors))
        vector = _by_blocks(vectors, cut_of(average, trim, len(vectors)))
        return aggregate_one(aggregation, vector, updates.frame)

    return aggregation if average == "mean" else Aggregation(_All, _All.add, finish)


@dataclass
class _All:
    """Every update of the round."""

    frame: AggregationInputs
    vectors: list[Tensor] = field(default_factory=list)

    def add(self, upload: Upload) -> _All:
        self.vectors.append(upload.vector)
        return self


def _by_blocks(vectors: list[Tensor], cut: int) -> Float[Tensor, "n"]:
    """The trimmed mean, some numbers at a time, so that no second copy of all updates is made."""
    width = max(1, BLOCK // len(vectors))
    mean = torch.empty_like(vectors[0])
    for start in range(0, len(mean), width):
        block = np.stack([vector[start : start + width].numpy() for vector in vectors])
        mean[start : start + width] = torch.from_numpy(trimmed_mean(block, cut))
    return mean


@dataclass(frozen=True)
class NormBound:
    """The largest L2 norm of (update - broadcast) over all numbers, and what is done with one beyond it."""

    largest: float
    over: Literal["reject", "scale"] = "reject"

    def within(self, vector: Float[Tensor, "n"], before: Float[Tensor, "n"]) -> tuple[Tensor, float]:
        """The vector, brought back to the bound if it lies beyond, and how far it lay from `before`."""
        change = vector.double() - before.double()
        norm = float(torch.linalg.vector_norm(change))
        if norm <= self.largest:
            return vector, norm
        return (before.double() + change * (self.largest / norm)).float(), norm
