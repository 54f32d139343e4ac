"""Control variates that draw clients' steps to the federation's direction.

Source: Karimireddy et al. 2020, arXiv 1910.06378 (SCAFFOLD), option II. Client i keeps c_i, the server c,
both zero at first. In a round whose K local steps have the rates l_1 ... l_K, from the broadcast x to y_i:

    each step     y <- y - l_k (gradient - c_i + c)
    client        c_i' = c_i - c + (x - y_i) / (l_1 + ... + l_K),      sends y_i and c_i' - c_i
    server        c <- c + share mean(c_i' - c_i),      x <- mean(y_i)

with the share of all clients' weight that those have who answered: |S| / N where all weigh the same. For
plain SGD, whose steps add up to what c_i estimates, and methods that send what they train.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.method import Aggregation, AggregationInputs, Averaged, Method, Upload

CONTROL = "control "
"""Before the name of a number, that of its control variate."""


def takes_control_variates(method: Method) -> bool:
    """Whether a client sends what it trained in every step, and the server needs its mean alone."""
    plain = method.finish_upload is None and method.trains_in_step is None and not method.turns
    return method.averages and method.sends_what_it_trains and plain and method.experts is None


class _Sums(NamedTuple):
    """The method's own sum of what was trained, and the sum of the control variates' changes."""

    frame: AggregationInputs
    trained: Any
    changes: WeightedSum


def _split(upload: Upload, frame: AggregationInputs) -> tuple[Upload, Upload]:
    """An upload without its control variates' changes, and these alone."""
    parts = []
    for control in (False, True):
        names = [name for name in frame.answer if name.startswith(CONTROL) == control]
        tensors = {name: upload.tensors[name] for name in names}
        vector = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        parts.append(upload._replace(tensors=tensors, vector=vector))
    return parts[0], parts[1]


def with_control_variates(aggregation: Aggregation, total_weight: float) -> Aggregation:
    """The aggregation of what was trained, and the server's control variates in its memory.

    Args:
        total_weight: of all clients, whether they answer or not.
    """

    def start(frame: AggregationInputs) -> _Sums:
        answers = [
            {name: shape for name, shape in frame.answer.items() if name.startswith(CONTROL) == control}
            for control in (False, True)
        ]
        trained = aggregation.start(frame._replace(answer=answers[0]))
        return _Sums(frame, trained, WeightedSum(frame._replace(answer=answers[1])))

    def add(sums: _Sums, upload: Upload) -> _Sums:
        trained, changes = _split(upload, sums.frame)
        return sums._replace(
            trained=aggregation.add(sums.trained, trained), changes=sums.changes.add(changes)
        )

    def finish(sums: _Sums) -> Averaged:
        averaged, share = aggregation.finish(sums.trained), sums.changes.weight / total_weight
        memory: dict[str, Tensor] = {}
        for name, change in sums.changes.mean().items():
            before = sums.frame.memory.get(name, torch.zeros_like(change))
            memory[name] = (before.double() + share * change.double()).float()
        return averaged._replace(memory={**averaged.memory, **memory})

    return Aggregation(start, add, finish)
