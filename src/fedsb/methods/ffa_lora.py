"""FFA-LoRA: LoRA with A frozen at its random start; clients train B, the server averages B.

Source: Sun et al. 2024, arXiv 2403.12313. Trains B. Up and down: out * r numbers per layer (and the head).
Sent once: nothing, each layer's A comes from the shared seed, another one for each layer. Exact:
mean(B_i A) = mean(B_i) A. Scale alpha / r.
"""

from __future__ import annotations

from fedsb.adapter.bases import lora_factors
from fedsb.methods.averaging.mean import weighted_mean
from fedsb.methods.method import Counts, Method, Shape, always, lora_scale


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """out * rank; the tables of Singhal et al. count half of LoRA's, the same on square layers only."""
    numbers = rank * shape.out
    return Counts(numbers, numbers, numbers, paper=rank * (shape.out + shape.n_in) / 2)


ffa_lora = Method(
    name="ffa-lora",
    source="Sun et al. 2024, arXiv 2403.12313",
    exact=True,
    trains=always("B"),
    sends=("B",),
    scale=lora_scale,
    aggregation=weighted_mean(),
    cost=_cost,
    draw=lora_factors,
)
