"""FedIT: LoRA on every client, A and B averaged apart. With one client it is plain LoRA.

Source: Zhang et al. 2023, arXiv 2305.05644. Trains A and B. Up and down: (out + in) * r numbers per layer
(and the head). Sent once: nothing, A starts from the shared seed and B from zero. Not exact:
mean(B_i) mean(A_i) differs from mean(B_i A_i). Scale alpha / r, 1 by
default (as in the federated SNLI runs of the Fed-SB authors).
"""

from __future__ import annotations

from fedsb.bases import lora_factors
from fedsb.methods.mean import weighted_mean
from fedsb.methods.method import Method

fedit = Method(
    name="fedit",
    source="Zhang et al. 2023, arXiv 2305.05644",
    exact=False,
    trains=("A", "B"),
    scale=lambda rank, alpha: 1.0 if alpha is None else alpha / rank,
    draw=lora_factors,
    aggregation=weighted_mean(),
)
