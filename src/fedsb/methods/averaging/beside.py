"""What travels beside trained numbers and is averaged apart from them: for each number one more of a kind.

An entry of an upload is of a kind by how its name starts; the rest of its name is that of the number it is
of. What the server makes of the mean is in its memory, from where the next broadcast takes it:

    control variates    c <- c + share mean(c_i' - c_i)       see `federation.control_variates`
    Adam's moments      m <- mean(m_i), v <- mean(v_i)        see `federation.moments`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.method import Aggregation, AggregationInputs, Averaged, Upload

CONTROL = "control "
MOMENTS = ("first of ", "second of ")
Remember = Callable[[Tensor, Tensor, float], Tensor]
"""(what the memory has, the mean of what came, the weight of those who sent it) -> what the memory gets."""


def added_by(total_weight: float) -> Remember:
    """The mean joins what is there, at the share of `total_weight` that those have who sent it."""
    return lambda before, mean, weight: (before.double() + weight / total_weight * mean.double()).float()


def replaced(before: Tensor, mean: Tensor, weight: float) -> Tensor:
    """The mean alone."""
    return mean


class _Sums(NamedTuple):
    """The method's own sum of what was trained, and the sum of what travels beside it."""

    frame: AggregationInputs
    trained: Any
    beside: WeightedSum


def with_beside(aggregation: Aggregation, kinds: tuple[str, ...], remember: Remember) -> Aggregation:
    """The aggregation of everything else, and what is made of these kinds in the memory."""

    def split(names: Any, inside: bool) -> list[str]:
        return [name for name in names if name.startswith(kinds) == inside]

    def start(frame: AggregationInputs) -> _Sums:
        trained, beside = (
            frame._replace(answer={name: frame.answer[name] for name in split(frame.answer, inside)})
            for inside in (False, True)
        )
        return _Sums(frame, aggregation.start(trained), WeightedSum(beside))

    def add(sums: _Sums, upload: Upload) -> _Sums:
        parts = []
        for inside in (False, True):
            tensors = {name: upload.tensors[name] for name in split(sums.frame.answer, inside)}
            vector = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
            parts.append(upload._replace(tensors=tensors, vector=vector))
        trained = aggregation.add(sums.trained, parts[0])
        return sums._replace(trained=trained, beside=sums.beside.add(parts[1]))

    def finish(sums: _Sums) -> Averaged:
        averaged = aggregation.finish(sums.trained)
        memory = {
            name: remember(sums.frame.memory.get(name, torch.zeros_like(mean)), mean, sums.beside.weight)
            for name, mean in sums.beside.mean().items()
        }
        return averaged._replace(memory={**averaged.memory, **memory})

    return Aggregation(start, add, finish)
