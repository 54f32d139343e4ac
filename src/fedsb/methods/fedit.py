"""FedIT: LoRA on every client, A and B averaged apart. With one client it is plain LoRA.

Source: Zhang et al. 2023, arXiv 2305.05644. Trains A and B. Up and down: (out + in) * r numbers per layer
(and the head). Sent once: nothing, A starts from the shared seed and B from zero. Not exact:
mean(B_i) mean(A_i) differs from mean(B_i A_i); the difference is measured each round. Scale alpha / r.
"""

from __future__ import annotations

from fedsb.adapter.bases import lora_factors
from fedsb.methods.averaging.covariance import MeansAndCovariances
from fedsb.methods.method import Aggregation, Averaged, Counts, Method, Shape, always, lora_scale


def pair_numbers(shape: Shape, rank: int) -> int:
    """Numbers of B and A."""
    return rank * (shape.out + shape.n_in)


def pair_cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """(out + in) * rank up and down; the paper counts one client's upload."""
    numbers = pair_numbers(shape, rank)
    return Counts(numbers, numbers, numbers, numbers)


def one_factor_cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """B up, both down; the paper counts half of both, the same on square layers."""
    B, pair = rank * shape.out, pair_numbers(shape, rank)
    return Counts(B, B, pair, paper=pair / 2)


def _finish(sums: MeansAndCovariances) -> Averaged:
    return Averaged(sums.sums.mean(), deviation=sums.deviation())


fedit = Method(
    name="fedit",
    source="Zhang et al. 2023, arXiv 2305.05644",
    exact=False,
    trains=always("A", "B"),
    sends=("A", "B"),
    scale=lora_scale,
    aggregation=Aggregation(MeansAndCovariances, MeansAndCovariances.add, _finish),
    cost=pair_cost,
    draw=lora_factors,
)
