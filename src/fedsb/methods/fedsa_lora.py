"""FedSA-LoRA: A and B train, A is shared and averaged, each client keeps a B of its own.

Source: Guo et al. 2024, arXiv 2410.01463: what A learns is common to all clients, what B learns is a client's
own. Trains A and B. Up and down: in * r numbers per layer (and the head). Sent once: nothing, A starts from
the shared seed and B from zero. Client i ends with W0 + s B_i A, so there is no one model of which the
clients' mean could be exact: without a client's B the shared part is W0. Scale alpha / r.
"""

from __future__ import annotations

from fedsb.adapter.bases import lora_factors
from fedsb.methods.averaging.mean import weighted_mean
from fedsb.methods.method import Counts, Method, Shape, always, lora_scale


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """Both trained, in * rank sent; the paper's tables do not have this method."""
    A = rank * shape.n_in
    return Counts(A + rank * shape.out, A, A, A)


fedsa_lora = Method(
    name="fedsa-lora",
    source="Guo et al. 2024, arXiv 2410.01463",
    exact=False,
    trains=always("A", "B"),
    sends=("A",),
    stays=("B",),
    scale=lora_scale,
    aggregation=weighted_mean(),
    cost=_cost,
    draw=lora_factors,
)
