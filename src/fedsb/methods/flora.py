"""FLoRA: clients' LoRAs are stacked, the stack is folded into the base, and everybody starts again.

Source: Wang et al. 2024, arXiv 2409.05976. Trains A and B, at any rank of the client's. Up:
(out + in) * r_i numbers per layer (and the head). Down: the stack, (out + in) * sum(r_i), or out * in where
smaller. Sent once: nothing; each round's A comes from the shared seed and B from zero. Exact:
[p_1 B_1, p_2 B_2, ...] [A_1; A_2; ...] = sum(p_i B_i A_i). Scale alpha / r.
"""

from __future__ import annotations

import torch

from fedsb.adapter.bases import lora_factors
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.averaging.stack import Stack, stacked_numbers
from fedsb.methods.fedit import pair_numbers
from fedsb.methods.method import (
    Aggregation,
    AggregationInputs,
    Averaged,
    Counts,
    Method,
    Shape,
    Upload,
    always,
    lora_scale,
)


class Stacks:
    """One growing stack per layer, and the mean of everything else (the head)."""

    def __init__(self, frame: AggregationInputs):
        self.frame = frame
        self.stacks = {layer: Stack(shape) for layer, shape in frame.layers.items()}
        factors = {f"{layer}.{name}" for layer in frame.layers for name in ("A", "B")}
        self.others = {name: shape for name, shape in frame.answer.items() if name not in factors}
        self.sums = WeightedSum(frame._replace(answer=self.others))

    def add(self, upload: Upload) -> Stacks:
        self.sums.add(_only(upload, self.others))
        for layer, stack in self.stacks.items():
            B, A = upload.tensors[f"{layer}.B"], upload.tensors[f"{layer}.A"]
            stack.add(B, A, upload.weight, upload.client)
        return self


def _only(upload: Upload, names: dict[str, tuple[int, ...]]) -> Upload:
    tensors = {name: upload.tensors[name] for name in names}
    vector = torch.cat([t.reshape(-1) for t in tensors.values()]) if tensors else torch.zeros(0)
    return upload._replace(tensors=tensors, vector=vector)


def _finish(sums: Stacks) -> Averaged:
    head, factor = sums.sums.mean(), sums.frame.scale / sums.sums.weight
    return Averaged(head, {layer: stack.result(factor) for layer, stack in sums.stacks.items()})


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    numbers = pair_numbers(shape, rank)
    return Counts(numbers, numbers, stacked_numbers(shape, cohort * rank), paper=cohort * numbers)


flora = Method(
    name="flora",
    source="Wang et al. 2024, arXiv 2409.05976",
    exact=True,
    trains=always("A", "B"),
    sends=(),
    scale=lora_scale,
    aggregation=Aggregation(Stacks, Stacks.add, _finish),
    cost=_cost,
    draw=lora_factors,
    changes_base=True,
    mixed_ranks=True,
    averages=False,
)
