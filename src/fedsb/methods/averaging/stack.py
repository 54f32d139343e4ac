"""Sums of products B_i A_i kept as stacked factors, or dense where that is smaller. Nothing m x n before.

sum(w_i B_i A_i) = [w_1 B_1, w_2 B_2, ...] @ [A_1; A_2; ...]: the rank is the sum of the ranks.
"""

from __future__ import annotations

from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from fedsb.adapter import LoraPair
from fedsb.adapter.bases import column_signs
from fedsb.methods.method import Shape


class Stack:
    """A growing sum of products for one (out, in) layer; factors lie in the order of the clients."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.blocks: list[tuple[int, Tensor, Tensor]] = []
        self.dense: Float[Tensor, "out in"] | None = None

    def add(
        self, B: Float[Tensor, "out k"], A: Float[Tensor, "k in"], weight: float, client: int = 0
    ) -> None:
        """Add weight * B @ A."""
        if self.dense is not None:
            self.dense.addmm_(B.double(), A.double(), alpha=weight)
            return
        self.blocks.append((client, weight * B.double(), A.double()))
        if not factors_are_smaller(self.shape, rank=sum(B.shape[1] for _, B, _ in self.blocks)):
            self.dense = torch.zeros(self.shape, dtype=torch.float64)
            for _, left, right in self.blocks:
                self.dense.addmm_(left, right)
            self.blocks = []

    def pair(self) -> LoraPair:
        """The sum as one pair; only while not dense."""
        if not self.blocks:
            empty = torch.zeros(0, dtype=torch.float64)
            return LoraPair(empty.view(self.shape.out, 0), empty.view(0, self.shape.n_in))
        blocks = sorted(self.blocks, key=itemgetter(0))
        return LoraPair(torch.cat([B for _, B, _ in blocks], 1), torch.cat([A for _, _, A in blocks], 0))

    def result(self, factor: float) -> LoraPair | Tensor:
        """factor * sum in fp32, as a pair or dense, whichever is smaller."""
        if self.dense is not None:
            return (factor * self.dense).float()
        pair = self.pair()
        return LoraPair((factor * pair.B).float(), pair.A.float())

    def svd(self) -> tuple[Float[Tensor, "out k"], Float[Tensor, "k"], Float[Tensor, "k in"]]:
        """The sum's singular triplets, descending: as many as its rank can be."""
        if self.dense is None:
            return product_svd(self.pair())
        return _with_signs(*torch.linalg.svd(self.dense, full_matrices=False))

    def truncated(self, rank: int, factor: float, *, left: float = 0.5) -> LoraPair:
        """The best rank-`rank` approximation of factor * sum; of singular values B has the power `left`."""
        U, S, Vh = self.svd()
        return leading_pair(U, factor * S, Vh, rank, left=left)

    def squared_norm(self, plus: LoraPair | None = None) -> float:
        """||sum (+ B @ A)||_F^2."""
        if self.dense is not None:
            total = self.dense if plus is None else self.dense + plus.B.double() @ plus.A.double()
            return float(total.square().sum())
        pair = self.pair()
        if plus is not None:
            pair = LoraPair(torch.cat([pair.B, plus.B.double()], 1), torch.cat([pair.A, plus.A.double()], 0))
        return product_squared_norm(pair)


def leading_pair(
    U: Float[Tensor, "out k"],
    S: Float[Tensor, "k"],
    Vh: Float[Tensor, "k in"],
    rank: int,
    *,
    left: float = 0.5,
) -> LoraPair:
    """The leading `rank` of these directions in fp32; zeros where there are fewer.

    Args:
        left: the power of S that B has; A has the rest. 0.5: an even share.
    """
    S = S[:rank].clamp_min(0)
    B, A = (U[:, :rank] * S**left).float(), ((S ** (1 - left))[:, None] * Vh[:rank]).float()
    missing = rank - S.numel()
    return LoraPair(pad(B, (0, missing)), pad(A, (0, 0, 0, missing)))


def product_squared_norm(pair: LoraPair) -> float:
    """||B @ A||_F^2 from two small Gram matrices."""
    B, A = pair.B.double(), pair.A.double()
    return float((B.T @ B * (A @ A.T)).sum().clamp_min(0))


def factors_are_smaller(shape: Shape, rank: int) -> bool:
    """Whether rank-`rank` factors have fewer numbers than the dense matrix."""
    return rank * (shape.out + shape.n_in) < shape.out * shape.n_in


def stacked_numbers(shape: Shape, rank: int) -> int:
    """Numbers of a product of that rank as it travels: factors, or dense where smaller."""
    return min(rank * (shape.out + shape.n_in), shape.out * shape.n_in)


def product_svd(pair: LoraPair) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of B @ A from two thin QRs and a small SVD: never out x in."""
    Q_left, R_left = torch.linalg.qr(pair.B.double())
    Q_right, R_right = torch.linalg.qr(pair.A.double().T)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.T, full_matrices=False)
    return _with_signs(Q_left @ U, S, Vh @ Q_right.T)


def _with_signs(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if U.numel() == 0:
        return U, S, Vh
    signs = column_signs(U)
    return U * signs, S, Vh * signs.T
