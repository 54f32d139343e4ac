"""RoLoRA: LoRA in turns. Odd rounds train and average B over a common A, even rounds A over a common B.

Source: Chen et al. 2024, arXiv 2409.02346. Trains B or A. Up: out * r or in * r numbers per layer (and the
head). Down: (out + in) * r. (A client that was in the last round lacks only the factor that changed; we
send both, so that anyone can take part.) Sent once: nothing. Exact in each round: mean(B_i A) = mean(B_i) A
and mean(B A_i) = B mean(A_i). Scale alpha / r.
"""

from __future__ import annotations

from fedsb.adapter.bases import lora_factors
from fedsb.methods.averaging.mean import weighted_mean
from fedsb.methods.fedit import one_factor_cost
from fedsb.methods.method import Method, lora_scale


def _in_turns(round_number: int) -> tuple[str, ...]:
    return ("B",) if round_number % 2 == 1 else ("A",)


rolora = Method(
    name="rolora",
    source="Chen et al. 2024, arXiv 2409.02346",
    exact=True,
    trains=_in_turns,
    sends=("A", "B"),
    scale=lora_scale,
    aggregation=weighted_mean(),
    cost=one_factor_cost,  # of an odd round; an even one trains and sends in * rank
    draw=lora_factors,
)
