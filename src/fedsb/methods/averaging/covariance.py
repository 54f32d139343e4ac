"""mean(B_i A_i) - mean(B_i) mean(A_i) as a stream, in factors of rank at most (c - 1) r.

It is the clients' covariance. Each new client adds one block of rank r (the update rule of Welford 1962):
with weights so far W and means b, a, the sum of weighted products about the means grows by
(W w / (W + w)) (B_i - b)(A_i - a). So no m x n matrix is formed per client, and the first client adds none.
The blocks depend on the order, so clients wait until all are there, or until the sum is smaller dense.
"""

from __future__ import annotations

import math
from operator import itemgetter

from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import LoraPair
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.averaging.stack import Stack, factors_are_smaller
from fedsb.methods.method import AggregationInputs, BaseUpdate, Shape, Upload


class Covariance:
    """Running means of one layer's B and A, and the sum of products about them."""

    def __init__(self, shape: Shape):
        self.stack = Stack(shape)
        self.waiting: list[tuple[int, Tensor, Tensor, float]] = []
        self.weight = 0.0
        self.B: Tensor | None = None
        self.A: Tensor | None = None

    def add(
        self, B: Float[Tensor, "out r"], A: Float[Tensor, "r in"], weight: float, client: int = 0
    ) -> None:
        """Take in one client's factors."""
        self.waiting.append((client, B, A, weight))
        rank = sum(A.shape[0] for _, _, A, _ in self.waiting)
        if self.stack.dense is not None or not factors_are_smaller(self.stack.shape, rank):
            self._settle()

    def _settle(self) -> None:
        for _, B, A, weight in sorted(self.waiting, key=itemgetter(0)):
            self._take(B.double(), A.double(), weight)
        self.waiting = []

    def _take(self, B: Tensor, A: Tensor, weight: float) -> None:
        if self.B is None or self.A is None:
            self.B, self.A, self.weight = B.clone(), A.clone(), weight
            return
        total = self.weight + weight
        dB, dA = B - self.B, A - self.A
        self.stack.add(dB, dA, self.weight * weight / total)
        self.B, self.A = self.B + dB * (weight / total), self.A + dA * (weight / total)
        self.weight = total

    def residual(self, factor: float, rank: int | None = None) -> LoraPair | Tensor:
        """factor * (mean of products - product of means), truncated to `rank` if given."""
        self._settle()
        if rank is not None:
            return self.stack.truncated(rank, factor / self.weight)
        return self.stack.result(factor / self.weight)

    def squared_norm(self, plus: LoraPair | None = None) -> float:
        """||residual (+ B @ A)||_F^2."""
        self._settle()
        scaled = plus and LoraPair(self.weight * plus.B, plus.A)
        return self.stack.squared_norm(scaled) / self.weight**2

    def means(self) -> LoraPair:
        """mean(B_i) and mean(A_i), in fp64."""
        self._settle()
        assert self.B is not None
        assert self.A is not None
        return LoraPair(self.B, self.A)

    def squared_norms(self) -> tuple[float, float]:
        """(||residual||_F^2, ||mean of products||_F^2)."""
        return self.squared_norm(), self.squared_norm(self.means())


class MeansAndCovariances:
    """One fp64 sum of everything, and each layer's covariance: what averaging B and A apart leaves out."""

    def __init__(self, frame: AggregationInputs):
        self.frame = frame
        self.sums = WeightedSum(frame)
        self.covariances = {layer: Covariance(shape) for layer, shape in frame.layers.items()}

    def add(self, upload: Upload) -> MeansAndCovariances:
        self.sums.add(upload)
        for layer, covariance in self.covariances.items():
            B, A = upload.tensors[f"{layer}.B"], upload.tensors[f"{layer}.A"]
            covariance.add(B, A, upload.weight, upload.client)
        return self

    def residuals(self) -> BaseUpdate:
        """s (mean(B_i A_i) - mean(B_i) mean(A_i)) by layer."""
        scale, rank = self.frame.scale, self.frame.residual_rank
        return {layer: c.residual(scale, rank) for layer, c in self.covariances.items()}

    def deviation(self) -> float:
        """Norm of the residuals over norm of the mean updates, over all layers together."""
        residual, mean = map(sum, zip(*(c.squared_norms() for c in self.covariances.values()), strict=True))
        return math.sqrt(residual / mean) if mean > 0 else 0.0
