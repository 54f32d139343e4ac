"""Sums of products B_i A_i kept as stacked factors, or dense where that is smaller. Nothing m x n before.

sum(w_i B_i A_i) = [w_1 B_1, w_2 B_2, ...] @ [A_1; A_2; ...]: the rank is the sum of the ranks.
"""

from __future__ import annotations

from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import LoraPair
from fedsb.methods.method import Shape


class Stack:
    """A growing sum of products for one (out, in) layer; factors lie in the order of the clients."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.blocks: list[tuple[int, Tensor, Tensor]] = []
        self.dense: Float[Tensor, "out in"] | None = None

    @property
    def rank(self) -> int:
        """Columns stacked so far (0 once dense)."""
        return sum(B.shape[1] for _, B, _ in self.blocks)

    def add(
        self, B: Float[Tensor, "out k"], A: Float[Tensor, "k in"], weight: float, client: int = 0
    ) -> None:
        """Add weight * B @ A."""
        if self.dense is not None:
            self.dense.addmm_(B.double(), A.double(), alpha=weight)
            return
        self.blocks.append((client, weight * B.double(), A.double()))
        if not factors_are_smaller(self.shape, self.rank):
            self.dense = torch.zeros(self.shape, dtype=torch.float64)
            for _, left, right in self.blocks:
                self.dense.addmm_(left, right)
            self.blocks = []

    def pair(self) -> LoraPair:
        """The sum as one pair; only while not dense."""
        if not self.blocks:
            return LoraPair(*_nothing(self.shape))
        blocks = sorted(self.blocks, key=itemgetter(0))
        return LoraPair(torch.cat([B for _, B, _ in blocks], 1), torch.cat([A for _, _, A in blocks], 0))

    def result(self, factor: float) -> LoraPair | Tensor:
        """factor * sum in fp32, as a pair or dense, whichever is smaller."""
        if self.dense is not None:
            return (factor * self.dense).float()
        pair = self.pair()
        return LoraPair((factor * pair.B).float(), pair.A.float())

    def truncated(self, rank: int, factor: float) -> LoraPair:
        """The best rank-`rank` approximation of factor * sum, singular values shared evenly by B and A."""
        U, S, Vh = product_svd(self.pair()) if self.dense is None else _svd(self.dense)
        root = (factor * S[:rank]).clamp_min(0).sqrt()
        found = LoraPair((U[:, :rank] * root).float(), (root[:, None] * Vh[:rank]).float())
        return _padded(found, rank)

    def squared_norm(self, plus: LoraPair | None = None) -> float:
        """||sum (+ B @ A)||_F^2."""
        if self.dense is not None:
            total = self.dense if plus is None else self.dense + plus.B.double() @ plus.A.double()
            return float(total.square().sum())
        pair = self.pair()
        if plus is not None:
            pair = LoraPair(torch.cat([pair.B, plus.B.double()], 1), torch.cat([pair.A, plus.A.double()], 0))
        return product_squared_norm(pair)


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
    U, Vh = Q_left @ U, Vh @ Q_right.T
    return _fixed_signs(U, S, Vh)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fixed_signs(*torch.linalg.svd(matrix, full_matrices=False))


def _fixed_signs(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entry of each column of U positive, so that two machines agree."""
    if U.numel() == 0:
        return U, S, Vh
    sign = torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    return U * sign, S, Vh * sign.T


def _padded(pair: LoraPair, rank: int) -> LoraPair:
    missing = rank - pair.A.shape[0]
    if missing <= 0:
        return pair
    pad = torch.nn.functional.pad
    return LoraPair(pad(pair.B, (0, missing)), pad(pair.A, (0, 0, 0, missing)))


def _nothing(shape: Shape) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape.out, 0, dtype=torch.float64), torch.zeros(0, shape.n_in, dtype=torch.float64)
