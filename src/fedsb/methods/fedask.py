"""FedASK: clients train B under noise, and a sketch of the products in two exchanges gives new B and A.

Source: 2025, arXiv 2507.09990. Clients train B (`both: true`: A too) from the broadcast pair. With a random
Omega (in, w) that all draw from the shared seed, in each round anew (the authors' code: once), w = r +
`oversampling`:

    first   Y = mean(B_i (A_i Omega)),         Q = an orthonormal basis of Y's columns, which goes down
    second  P = mean(A_i^T (B_i^T Q)),         Q P^T = U S V^T,   B = U_r S_r^(1/2),   A = S_r^(1/2) V_r^T

so that A moves too, while only B's gradients met the noise: all that leaves is made of it, and costs no
more. Both means are sums, of which the server needs no client's own. Exact where A is common to all, as
then the mean product has rank r and Q holds it; with `both` what lies outside Q or beyond rank r is lost,
and nobody can measure it from sums. A client that answers first and not second is left out of P, and where
its part of Y is what Q holds, Q holds less of the others': the mean is then of those who answered twice,
seen through Q. Up: w (out + in) numbers per layer (and the head). Down: (out + in) * r, and w * out. Sent
once: nothing. Scale alpha / r. The paper leaves the width open; with 4 directions more than r Omega's part
in them is well conditioned, so fp32 holds the product.
"""

from __future__ import annotations

import torch

from fedsb.adapter import LoraPair
from fedsb.methods.averaging.mean import dead_directions, weighted_mean
from fedsb.methods.averaging.stack import leading_pair, product_svd
from fedsb.methods.fedit import fedit, pair_numbers
from fedsb.methods.method import Counts, FollowUp, Method, Named, Shape, UploadInputs, always, check_option


def _finish(asked: Named, means: Named, current: Named) -> Named:
    B, A = leading_pair(*product_svd(LoraPair(asked["Q"], means["P"].T)), len(current["A"]))
    return {"B": B, "A": torch.where(dead_directions(B, A)[:, None], current["A"], A)}


def fedask(both: bool = False, oversampling: int = 4) -> Method:
    """The method that trains B alone, or both factors, with a sketch of so many directions beyond r."""
    check_option("oversampling", float(oversampling), 0.0, 2.0**20)

    def width(shape: Shape, rank: int) -> int:
        return min(rank + oversampling, *shape)

    def shapes(shape: Shape, rank: int) -> dict[str, tuple[int, ...]]:
        w = width(shape, rank)
        return {"Y": (shape.out, w), "Q": (shape.out, w), "P": (shape.n_in, w)}

    def sketch(trained: Named, inputs: UploadInputs) -> Named:
        B, A = inputs.factors["B"], inputs.factors["A"]
        w = width(Shape(len(B), A.shape[1]), len(A))
        omega = torch.randn(A.shape[1], w, generator=inputs.generator).to(A)
        return {"Y": B @ (A @ omega)}

    def cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
        w, pair = width(shape, rank), pair_numbers(shape, rank)
        up = w * (shape.out + shape.n_in)
        return Counts(pair if both else rank * shape.out, up, pair + w * shape.out, paper=up)

    return fedit._replace(
        name="fedask",
        source="2025, arXiv 2507.09990",
        exact=not both,
        trains=always("A", "B") if both else always("B"),
        aggregation=weighted_mean(),
        cost=cost,
        finish_upload=sketch,
        uploads=("Y",),
        shapes=shapes,
        follow_up=FollowUp(
            asks=("Q",),
            answers=("P",),
            ask=lambda first: {"Q": torch.linalg.qr(first["Y"].double()).Q.float()},
            answer=lambda factors, asked: {"P": factors["A"].T @ (factors["B"].T @ asked["Q"])},
            finish=_finish,
        ),
        averages=False,
        options=fedask,
    )


method = fedask()
