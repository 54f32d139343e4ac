"""The weighted mean of flat vectors as a stream: one fp64 accumulator, whatever the number of clients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.errors import RunFailed
from fedsb.methods.method import Aggregation


class _Sum(NamedTuple):
    total: Float[Tensor, "size"]
    weight: float


def weighted_mean() -> Aggregation:
    """sum(w_i v_i) / sum(w_i), summed in fp64 and returned in fp32.

    The order of arrival changes the result by fp64 rounding at most, so hardly ever an fp32 digit.
    """
    return Aggregation(_start, _add, _finish)  # type: ignore[arg-type]


def _start(size: int) -> _Sum:
    return _Sum(torch.zeros(size, dtype=torch.float64), 0.0)


def _add(state: _Sum, vector: Float[Tensor, "size"], weight: float) -> _Sum:
    if not weight > 0:
        raise ValueError(f"weight: expected a positive number, found {weight}")
    state.total.add_(vector, alpha=weight)
    return _Sum(state.total, state.weight + weight)


def _finish(state: _Sum) -> Float[Tensor, "size"]:
    if state.weight == 0:
        raise RunFailed("no update to average")
    return (state.total / state.weight).float()
