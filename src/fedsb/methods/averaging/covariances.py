"""Means of all uploads, and each layer's covariance of B and A: what separate averaging leaves out."""

from __future__ import annotations

import math

from torch import Tensor

from fedsb.methods.averaging.covariance import Covariance
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.method import BaseUpdate, Frame, Upload


class MeansAndCovariances:
    """One fp64 sum of everything, and per layer the products about the means (see covariance.py)."""

    def __init__(self, frame: Frame):
        self.frame = frame
        self.sums = WeightedSum(frame)
        self.covariances = {layer: Covariance(shape) for layer, shape in frame.layers.items()}

    def add(self, upload: Upload) -> MeansAndCovariances:
        self.sums.add(upload)
        for layer, covariance in self.covariances.items():
            covariance.add(
                upload.tensors[f"{layer}.B"], upload.tensors[f"{layer}.A"], upload.weight, upload.client
            )
        return self

    def means(self) -> dict[str, Tensor]:
        """mean(A_i), mean(B_i) and the mean head, by name."""
        return self.sums.mean()

    def residuals(self) -> BaseUpdate:
        """s (mean(B_i A_i) - mean(B_i) mean(A_i)) by layer."""
        scale, rank = self.frame.scale, self.frame.residual_rank
        return {layer: c.residual(scale, rank) for layer, c in self.covariances.items()}

    def deviation(self) -> float:
        """Norm of the residuals over norm of the mean updates, over all layers together."""
        residual, mean = map(sum, zip(*(c.squared_norms() for c in self.covariances.values()), strict=True))
        return math.sqrt(residual / mean) if mean > 0 else 0.0
