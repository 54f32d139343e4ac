"""FedEx-LoRA: A and B averaged apart, and what that leaves out added to the base.

Source: Singhal, Ponkshe, Vepakomma 2024, arXiv 2410.09432. Trains A and B. Up: (out + in) * r numbers per
layer (and the head). Down: the means, and the residual mean(B_i A_i) - mean(B_i) mean(A_i) as factors of
rank at most (c - 1) r, or dense where smaller. Sent once: nothing. Exact, unless `method.residual_rank`
keeps less of the residual (the paper's variant for narrow lines). Scale alpha / r.
"""

from __future__ import annotations

from fedsb.methods.averaging.covariance import MeansAndCovariances
from fedsb.methods.averaging.stack import stacked_numbers
from fedsb.methods.fedit import fedit, pair_numbers
from fedsb.methods.method import Aggregation, Averaged, Counts, Shape


def _finish(sums: MeansAndCovariances) -> Averaged:
    return Averaged(sums.sums.mean(), sums.residuals(), sums.deviation())


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    numbers = pair_numbers(shape, rank)
    down = numbers + stacked_numbers(shape, (cohort - 1) * rank)
    return Counts(numbers, numbers, down, paper=cohort * numbers)


fedex_lora = fedit._replace(
    name="fedex-lora",
    source="Singhal et al. 2024, arXiv 2410.09432",
    exact=True,
    aggregation=Aggregation(MeansAndCovariances, MeansAndCovariances.add, _finish),
    cost=_cost,
    changes_base=True,
    averages=False,
    residual=True,
)
