"""The weighted mean of uploads as a stream: one fp64 accumulator, whatever the number of clients.

Clients of smaller rank own the leading block of each factor, or some of the heads. What they lack counts,
with padding "all", as what their model has in its place: zero outside the block (they hold no such entry),
the broadcast value for a head they hold and did not train. The mean of the updates is then exact. With
padding "owners" each entry is averaged over those who trained it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsb.errors import RunFailed
from fedsb.methods.method import Aggregation, AggregationInputs, Averaged, Upload, views_by_name

BLOCK = 2**16
"""Numbers that are widened together: 0.5 MiB, as much of the sum beside them."""

TOGETHER, NUMBERS = 8, 2**23
"""Whole vectors that wait, so many or so many numbers (32 MiB) at most, to be added together: each block of
the sum is fetched once for all of them."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread in the block; setting their number takes less than a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WeightedSum:
    """sum(w_i v_i) over vectors whose parts may be leading blocks of the whole."""

    def __init__(self, frame: AggregationInputs):
        self.frame = frame
        self.added, self.named = _zeros(frame)
        self.wide = torch.empty(min(BLOCK, self.added.numel()), dtype=torch.float64)
        self.waiting: list[tuple[Tensor, float]] = []
        self.weight = 0.0
        self.owned: dict[str, Tensor] | None = None
        """Weight of each entry's owners, by name; None while every upload was whole."""

    def add(self, upload: Upload) -> WeightedSum:
        if not upload.weight > 0:
            raise ValueError(f"weight: expected a positive number, found {upload.weight}")
        self.weight += upload.weight
        if upload.vector.numel() == self.added.numel() and upload.weights is None:
            self._add_later(upload)
            if self.owned is not None:
                for part in self.owned.values():
                    part.add_(upload.weight)
        else:
            self._add_part(upload)
        return self

    def _add_later(self, upload: Upload) -> None:
        self.waiting.append((upload.vector, upload.weight))
        if len(self.waiting) == TOGETHER or len(self.waiting) * self.added.numel() > NUMBERS:
            self._add_waiting()

    def _add_waiting(self) -> None:
        """Block by block, each widened in the cache and added on one thread: adding fp32 to fp64 at once, or
        with threads that wait for each other on a busy machine, takes up to five times as long."""
        waiting = [(vector.split(BLOCK), weight) for vector, weight in self.waiting]
        self.waiting = []
        with one_thread():
            for n, total in enumerate(self.added.split(BLOCK)):
                for blocks, weight in waiting:
                    total.add_(self.wide[: len(total)].copy_(blocks[n]), alpha=weight)

    @property
    def total(self) -> Float[Tensor, "size"]:
        """The sum, of all that was given."""
        self._add_waiting()
        return self.added

    def _add_part(self, upload: Upload) -> None:
        if self.owned is None:
            owned = _zeros(self.frame)[1]
            self.owned = {name: part.add_(self.weight - upload.weight) for name, part in owned.items()}
        for name, tensor in upload.tensors.items():
            where, weight = region(name, tensor.shape, upload.heads), _weight_of(name, upload)
            self.named[name][where] += weight * tensor.double()
            self.owned[name][where] += weight
            if upload.heads is not None and _is_core(name) and self.frame.padding == "all":
                self._add_untrained(name, upload)

    def _add_untrained(self, name: str, upload: Upload) -> None:
        """Heads a client holds and did not train are in its model at the broadcast value."""
        untrained = tuple(h for h in range(self.named[name].shape[0]) if h not in (upload.heads or ()))
        where = region(name, upload.tensors[name].shape, untrained)
        self.named[name][where] += upload.weight * self.frame.current[name][where].double()

    def mean(self) -> dict[str, Tensor]:
        """By name, in fp32."""
        if self.weight == 0:
            raise RunFailed("no update to average")
        self._add_waiting()
        if self.frame.padding == "all" or self.owned is None:
            return {name: (part / self.weight).float() for name, part in self.named.items()}
        return {name: self._mean_of_owners(name) for name in self.named}

    def _mean_of_owners(self, name: str) -> Tensor:
        """Entries nobody trained this round keep the value that was broadcast."""
        assert self.owned is not None
        weights = self.owned[name]
        mean = self.named[name] / weights.clamp_min(1e-300)
        before = self.frame.current.get(name)
        return (mean if before is None else torch.where(weights > 0, mean, before.double())).float()


def region(name: str, shape: tuple[int, ...], heads: tuple[int, ...] | None = None) -> Any:
    """Where a part of this shape lies in the whole: the leading block, of these heads alone (None: all)."""
    block = tuple(slice(0, n) for n in shape)
    return (list(heads), *block[1:]) if heads is not None and _is_core(name) else block


def _weight_of(name: str, upload: Upload) -> float | Tensor:
    """The weight of this tensor of an upload; one for each expert of a core that holds several."""
    if upload.weights is None or not _is_core(name):
        return upload.weight
    return torch.tensor(upload.weights, dtype=torch.float64)[:, None, None]


def keep_directions(tensors: dict[str, Tensor], frame: AggregationInputs) -> None:
    """Where A and B are both zero, as no client of the round held them, A keeps what was broadcast.

    B A is the same, and the direction can train again: with both at zero, both gradients are zero for ever.
    """
    for layer in frame.layers:
        B, A = tensors[f"{layer}.B"], tensors[f"{layer}.A"]
        lost = dead_directions(B, A)[:, None]
        tensors[f"{layer}.A"] = torch.where(lost, frame.current[f"{layer}.A"], A)


def dead_directions(B: Float[Tensor, "out r"], A: Float[Tensor, "r in"]) -> Bool[Tensor, "r"]:
    """Which directions are zero in both factors."""
    return ~(B.any(0) | A.any(1))


def weighted_mean() -> Aggregation:
    """sum(w_i v_i) / sum(w_i), summed in fp64 and returned in fp32.

    The order of arrival changes the result by fp64 rounding at most, so hardly ever an fp32 digit.
    """
    return Aggregation(WeightedSum, WeightedSum.add, lambda total: Averaged(total.mean()))


def _is_core(name: str) -> bool:
    return name.endswith(".R")


def _zeros(frame: AggregationInputs) -> tuple[Float[Tensor, "size"], dict[str, Tensor]]:
    """An fp64 vector and its views by name."""
    flat = torch.zeros(sum(prod(shape) for shape in frame.answer.values()), dtype=torch.float64)
    return flat, views_by_name(flat, frame)
