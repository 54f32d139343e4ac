"""FedMomentum: the mean product's leading directions go on training, and the others join the base.

Source: Yan et al. 2026, arXiv 2603.08014. Trains A and B. With the mean product's SVD, mean(B_i A_i) = U S
V^T,

    B = U_r S_r^(1/2),    A = S_r^(1/2) V_r^T,    W0 += s U_rest S_rest V_rest^T

so that no direction starts again, as all do in FLoRA, and none is lost, as in FlexLoRA. Of the rest the
server adds what holds the share `energy` of all squared singular values, 0.9999 as in the paper; every
layer at the rank of the one that needs most, so that one number says what travels (our choice). It adds it
times s, LoRA's scale, as W0 + s B A needs it. Up: (out + in) * r numbers per layer (and the head). Down:
the same, and the rest as factors of rank at most (c - 1) r, or dense where smaller. Sent once: nothing.
Exact with energy 1, and up to what is left out else; `method.residual_rank` bounds the rank of the rest.
Scale alpha / r.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fedsb.methods.averaging.mean import keep_directions
from fedsb.methods.averaging.stack import leading_pair, stacked_numbers
from fedsb.methods.fedit import fedit, pair_numbers
from fedsb.methods.flora import Stacks
from fedsb.methods.method import Aggregation, Averaged, BaseUpdate, Counts, Method, Shape, check_option


class Svd(NamedTuple):
    """Singular triplets of a layer's mean product."""

    U: Float[Tensor, "out k"]
    S: Float[Tensor, "k"]
    Vh: Float[Tensor, "k in"]


def directions_for(S: Float[Tensor, "k"], energy: float) -> int:
    """How many leading directions hold this share of all squared singular values."""
    held, total = S.square().cumsum(0), float(S.square().sum())
    return len(S) if energy >= 1 else int((held < energy * total).sum()) + (total > 0)


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    numbers = pair_numbers(shape, rank)
    down = numbers + stacked_numbers(shape, (cohort - 1) * rank)
    return Counts(numbers, numbers, down, paper=cohort * numbers)


def fedmomentum(energy: float = 0.9999) -> Method:
    """The method that keeps this share of the squared singular values."""
    check_option("energy", energy, 0.0, 1.0)

    def finish(sums: Stacks) -> Averaged:
        tensors, factor, frame = sums.sums.mean(), 1 / sums.sums.weight, sums.frame
        found = {
            n: Svd(U, factor * S, Vh) for n, (U, S, Vh) in ((n, s.svd()) for n, s in sums.stacks.items())
        }
        rank = next(iter(frame.answer[f"{layer}.A"][0] for layer in found))
        rest = max(directions_for(svd.S, energy) for svd in found.values()) - rank
        rest = max(0, rest if frame.residual_rank is None else min(rest, frame.residual_rank))
        base: BaseUpdate = {}
        for layer, (U, S, Vh) in found.items():
            tensors[f"{layer}.B"], tensors[f"{layer}.A"] = leading_pair(U, S, Vh, rank)
            after = slice(rank, rank + rest)
            base[layer] = leading_pair(U[:, after], frame.scale * S[after], Vh[after], rest)
        keep_directions(tensors, frame)
        lost = sum(float(svd.S[rank:].square().sum()) for svd in found.values())
        whole = sum(float(svd.S.square().sum()) for svd in found.values())
        return Averaged(tensors, base if rest else None, math.sqrt(lost / whole) if whole > 0 else 0.0)

    return fedit._replace(
        name="fedmomentum",
        source="Yan et al. 2026, arXiv 2603.08014",
        exact=energy == 1,
        aggregation=Aggregation(Stacks, Stacks.add, finish),
        cost=_cost,
        changes_base=True,
        averages=False,
        residual=True,
        options=fedmomentum,
    )


method = fedmomentum()
