"""FLoRG: one factor F between fixed bases, whose Gram matrix is what the server averages.

Source: Meng, Tang, Wong 2026, arXiv 2602.17095. The update is s B F^T F A over fixed B (out, k) and A (k,
in) with B^T B = A A^T = I and k = min(out, in), so over every direction of the layer; F (r, k) trains. The
server takes

    Q = mean(F_i^T F_i) = V D V^T,    F' = D_r^(1/2) V_r^T,
    F <- S F',    S = argmin ||F - S F'||_F over S^T S = I

and broadcasts F: of all factors of Q's best rank-r approximation the one nearest to the last broadcast
(orthogonal Procrustes). F'^T F' has no cross terms to miss, so it is exact before it is cut to rank r,
lossy after; what is lost is measured each round. The update is positive semidefinite between the bases, so
what F has learnt in one direction it cannot turn negative, and at F = 0 its gradient is zero. Up and down:
min(out, in) * r numbers per layer (and the head). Sent once: nothing, each party draws B and A from the
shared seed; it holds them, as many numbers as W0 has and more. Scale alpha / r. The text that we know does
not say how F starts: ours is normal with standard deviation 0.001, an update far below W0's rounding in 16
bits.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.adapter.bases import orthonormal_columns, orthonormal_rows
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.averaging.stack import Stack
from fedsb.methods.method import (
    Aggregation,
    AggregationInputs,
    Averaged,
    Counts,
    Method,
    Shape,
    Upload,
    always,
    lora_scale,
)

START_STD = 1e-3


def _draw(out: int, n_in: int, rank: int, *, generator: torch.Generator) -> Factors:
    width = min(out, n_in)
    B = orthonormal_columns(out, width, generator).contiguous()
    A = orthonormal_rows(width, n_in, generator=generator)
    return Factors(B, A, R=None, F=START_STD * torch.randn(rank, width, generator=generator))


class Grams:
    """One growing sum of Gram matrices per layer, as factors, and the mean of everything else (the head)."""

    def __init__(self, frame: AggregationInputs):
        self.frame = frame
        self.sums = WeightedSum(frame)
        sides = {layer: min(shape) for layer, shape in frame.layers.items()}
        self.stacks = {layer: Stack(Shape(side, side)) for layer, side in sides.items()}

    def add(self, upload: Upload) -> Grams:
        self.sums.add(upload)
        for layer, stack in self.stacks.items():
            F = upload.tensors[f"{layer}.F"]
            stack.add(F.T, F, upload.weight, upload.client)
        return self


def aligned(found: Float[Tensor, "r k"], before: Float[Tensor, "r k"]) -> Float[Tensor, "r k"]:
    """S @ found nearest to `before` over orthogonal S, reflections too (Schönemann 1966)."""
    U, _, Vh = torch.linalg.svd(before @ found.T)
    turned: Tensor = U @ Vh @ found
    return turned


def _finish(sums: Grams) -> Averaged:
    tensors, lost, whole = sums.sums.mean(), 0.0, 0.0
    for layer, stack in sums.stacks.items():
        before = sums.frame.current[f"{layer}.F"].double()
        _, eigenvalues, vectors = stack.svd()
        rank, eigenvalues = len(before), (eigenvalues / sums.sums.weight).clamp_min(0)
        factor = eigenvalues[:rank].sqrt()[:, None] * vectors[:rank]
        tensors[f"{layer}.F"] = aligned(factor, before).float()
        whole += float(eigenvalues.square().sum())
        lost += float(eigenvalues[rank:].square().sum())
    return Averaged(tensors, deviation=math.sqrt(lost / whole) if whole > 0 else 0.0)


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """min(out, in) * rank; the paper counts one client's upload."""
    numbers = rank * min(shape)
    return Counts(numbers, numbers, numbers, numbers)


florg = Method(
    name="florg",
    source="Meng et al. 2026, arXiv 2602.17095",
    exact=False,
    trains=always("F"),
    sends=("F",),
    scale=lora_scale,
    aggregation=Aggregation(Grams, Grams.add, _finish),
    cost=_cost,
    draw=_draw,
    averages=False,
)
