"""FRLoRA: each round trains LoRA from W0's leading directions, and its whole step joins the base.

Source: Yan et al. 2025, ICLR 2025, openreview e0rQRMUhs7. With s B0 A0 the best rank-r
approximation of W0, singular values shared evenly by both, a client's weights in round t are

    W_t + s (B A - B0 A0),    A and B trained from A0 and B0 in every round,

and the server averages A and B apart: W_(t+1) = W_t + s (mean(B_i) mean(A_i) - B0 A0). So the sum of the
rounds' steps has a rank beyond r, and all clients begin each round at the same place. Up: (out + in) * r
numbers per layer (and the head). Down: the step, as factors of rank 2 r or dense where smaller. (A client
could subtract B0 A0 by itself; we send the step, so that anyone can take part.) Sent once: nothing, every
party that has W0 derives A0 and B0. Not exact, as FedIT is not: the deviation is measured each round. Scale
alpha / r. (The authors' code takes the plain mean of the clients; ours weighs them as the run says.)
"""

from __future__ import annotations

import math

import torch

from fedsb.adapter import LoraPair
from fedsb.methods.averaging.covariance import MeansAndCovariances
from fedsb.methods.averaging.stack import stacked_numbers
from fedsb.methods.fedit import fedit, pair_numbers
from fedsb.methods.method import Aggregation, Averaged, BaseUpdate, Counts, Shape


def _finish(sums: MeansAndCovariances) -> Averaged:
    others, scale, left_out, whole = sums.sums.mean(), sums.frame.scale, 0.0, 0.0
    steps: BaseUpdate = {}
    for layer, covariance in sums.covariances.items():
        B, A = (others.pop(f"{layer}.{name}").double() for name in ("B", "A"))
        B0, A0 = (sums.frame.start[f"{layer}.{name}"].double() for name in ("B", "A"))
        step = LoraPair(torch.cat([B, -B0], 1), torch.cat([A, A0], 0))
        steps[layer] = LoraPair((scale * step.B).float(), step.A.float())
        left_out += covariance.squared_norm()
        whole += covariance.squared_norm(step)
    return Averaged(others, steps, math.sqrt(left_out / whole) if whole > 0 else 0.0)


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """(out + in) * rank up; the step of rank 2 * rank down; the paper counts what LoRA would send."""
    numbers = pair_numbers(shape, rank)
    return Counts(numbers, numbers, stacked_numbers(shape, 2 * rank), paper=numbers)


fr_lora = fedit._replace(
    name="fr-lora",
    source="Yan et al. 2025, openreview e0rQRMUhs7",
    sends=(),
    aggregation=Aggregation(MeansAndCovariances, MeansAndCovariances.add, _finish),
    cost=_cost,
    draw=None,
    bases="principal",
    less_start=True,
    changes_base=True,
    averages=False,
)
