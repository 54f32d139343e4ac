"""A matrix from sketches that add up: two thin products travel instead of the matrix.

A party with the matrix G_i of a layer (out x in) sends Y_i = G_i @ right and W_i = left @ G_i, for random
`right` (in x k) and `left` (l x out) that all parties draw from the same seed. Both are linear in G_i, so the
sum of sketches is the sketch of the sum, and whoever adds them up needs no party's own. From the sums come

    Q = orth(Y),  X = (left @ Q)^+ W,  G ~ Q X    (Tropp, Yurtsever, Udell, Cevher 2017, arXiv 1609.00048)

A G of rank r or less comes back exactly, up to rounding. For Gaussian `right` and `left` of the sizes below
the expected squared error is at most 4 times that of the best matrix of rank r: the paper's factor is
(1 + f(k, l)) (1 + f(r, k)), f(s, t) = s / (t - s - 1), and both f are 1. As it advises, both are made
orthonormal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.methods.method import Shape

COLUMNS_PER_DIRECTION = 2
"""k = 2 r + 1 columns of Y for r directions wanted, so that f(r, k) = 1 (arXiv 1609.00048)."""
ROWS_PER_COLUMN = 2
"""l = 2 k + 1 rows of W, so that f(k, l) = 1 (same paper)."""


class MatrixSketch(NamedTuple):
    """G @ right and left @ G; the matrix itself, and no rows, where that is smaller."""

    columns: Float[Tensor, "out k"]
    rows: Float[Tensor, "l in"]


class Probes(NamedTuple):
    """Orthonormal columns and rows, shared by all parties."""

    right: Float[Tensor, "in k"]
    left: Float[Tensor, "l out"]


def sketch_widths(shape: Shape, rank: int, columns_per_direction: int) -> tuple[int, int] | None:
    """(k, l), which are less than in and out; None where the matrix has no more numbers than its sketch."""
    k = columns_per_direction * rank + 1
    height = ROWS_PER_COLUMN * k + 1
    smaller = k * shape.out + height * shape.n_in < shape.out * shape.n_in
    return (k, height) if smaller else None


def sketched_numbers(shape: Shape, rank: int, columns_per_direction: int = COLUMNS_PER_DIRECTION) -> int:
    """Numbers of a layer's sketch as it travels: k * out + l * in, or the matrix where that is smaller.

    >>> sketched_numbers(Shape(100, 50), 4)
    1850
    """
    widths = sketch_widths(shape, rank, columns_per_direction)
    return shape.out * shape.n_in if widths is None else widths[0] * shape.out + widths[1] * shape.n_in


def draw_probes(
    shape: Shape,
    rank: int,
    *,
    generator: torch.Generator,
    columns_per_direction: int = COLUMNS_PER_DIRECTION,
) -> Probes | None:
    """Fresh `right` and `left` for `rank` directions; None where the matrix itself is smaller."""
    widths = sketch_widths(shape, rank, columns_per_direction)
    if widths is None:
        return None
    right = _orthonormal(shape.n_in, widths[0], generator)
    return Probes(right, _orthonormal(shape.out, widths[1], generator).T.contiguous())


def sketch_of(matrix: Float[Tensor, "out in"], probes: Probes | None) -> MatrixSketch:
    """What travels of this matrix."""
    if probes is None:
        return MatrixSketch(matrix, matrix.new_empty(0, matrix.shape[1]))
    return MatrixSketch(matrix @ probes.right, probes.left @ matrix)


def add_sketches(one: MatrixSketch, other: MatrixSketch) -> MatrixSketch:
    """The sketch of the sum."""
    return MatrixSketch(one.columns + other.columns, one.rows + other.rows)


def matrix_of(sketch: MatrixSketch, probes: Probes | None) -> Float[Tensor, "out in"]:
    """The matrix that was sketched, up to its small singular values: of rank k, in fp32."""
    if probes is None:
        return sketch.columns.float()
    Q, _ = torch.linalg.qr(sketch.columns.double())
    X = torch.linalg.lstsq(probes.left.double() @ Q, sketch.rows.double()).solution
    return (Q @ X).float()


def _orthonormal(size: int, width: int, generator: torch.Generator) -> Tensor:
    Q: Tensor = torch.linalg.qr(torch.randn(size, width, generator=generator)).Q
    return Q
