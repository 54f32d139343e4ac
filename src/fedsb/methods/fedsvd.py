"""FedSVD: clients train B; the server turns B A into another pair of the same product, with A orthonormal.

Source: Lee et al. 2025, arXiv 2505.12805. Trains B. Up: out * r numbers per layer (and the head). Down:
(out + in) * r: A changes each round. (A client that was in the last round could derive A from B itself, as
the paper counts; we send it, so that anyone can take part.) Sent once: nothing. Exact:
mean(B_i A) = mean(B_i) A = (U S) V^T, with the new B = U S and A = V^T. Scale alpha / r.
"""

from __future__ import annotations

import torch

from fedsb.adapter import Factors, LoraPair
from fedsb.adapter.bases import orthonormal_rows
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.averaging.stack import product_svd
from fedsb.methods.fedit import one_factor_cost
from fedsb.methods.method import Aggregation, Averaged, Method, always, lora_scale


def _draw(out: int, n_in: int, rank: int, *, generator: torch.Generator) -> Factors:
    """A with orthonormal rows, B = 0."""
    return Factors(B=torch.zeros(out, rank), A=orthonormal_rows(rank, n_in, generator=generator), R=None)


def _finish(total: WeightedSum) -> Averaged:
    tensors = total.mean()
    for layer in total.frame.layers:
        B, A = tensors[f"{layer}.B"], total.frame.current[f"{layer}.A"]
        if B.any():  # a product of zero has no directions: keep A
            U, S, Vh = product_svd(LoraPair(B, A))
            tensors[f"{layer}.B"], tensors[f"{layer}.A"] = (U * S).float(), Vh.float()
    return Averaged(tensors)


fedsvd = Method(
    name="fedsvd",
    source="Lee et al. 2025, arXiv 2505.12805",
    exact=True,
    trains=always("B"),
    sends=("A", "B"),
    scale=lora_scale,
    aggregation=Aggregation(WeightedSum, WeightedSum.add, _finish),
    cost=one_factor_cost,
    draw=_draw,
    turns=True,
)
