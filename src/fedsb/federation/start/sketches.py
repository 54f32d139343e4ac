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

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.bases import orthonormal_columns
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import apply_rule, sum_over_batches
from fedsb.common.seeding import torch_generator
from fedsb.federation.start.contribution import (
    SENT_AS,
    Contribution,
    Contributor,
    Shapes,
    Tensors,
    empty,
    finished,
    norms_of,
    reducer,
    step_rule,
    summed,
)
from fedsb.federation.start.ranks import directions_sent
from fedsb.federation.start.settings import Start
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
    shape: Shape, rank: int, *, generator: torch.Generator, columns_per_direction: int = COLUMNS_PER_DIRECTION
) -> Probes | None:
    """Fresh `right` and `left` for `rank` directions; None where the matrix itself is smaller."""
    widths = sketch_widths(shape, rank, columns_per_direction)
    if widths is None:
        return None
    right = orthonormal_columns(shape.n_in, widths[0], generator)
    return Probes(right, orthonormal_columns(shape.out, widths[1], generator).T.contiguous())


def sketch_of(matrix: Float[Tensor, "out in"], probes: Probes | None) -> MatrixSketch:
    """What travels of this matrix."""
    if probes is None:
        return MatrixSketch(matrix, matrix.new_empty(0, matrix.shape[1]))
    return MatrixSketch(matrix @ probes.right, probes.left @ matrix)


def add_sketches(first: MatrixSketch, second: MatrixSketch) -> MatrixSketch:
    """The sketch of the sum."""
    return MatrixSketch(first.columns + second.columns, first.rows + second.rows)


def matrix_of(sketch: MatrixSketch, probes: Probes | None) -> Float[Tensor, "out in"]:
    """The matrix that was sketched, up to its small singular values: of rank k, in fp32."""
    if probes is None:
        return sketch.columns.float()
    Q, _ = torch.linalg.qr(sketch.columns.double())
    X = torch.linalg.lstsq(probes.left.double() @ Q, sketch.rows.double()).solution
    return (Q @ X).float()


def _send_sketch(
    model: nn.Module, targets: Mapping[str, nn.Module], start: Start, contributor: Contributor
) -> Tensors:
    """Its share of the pooled mean, sketched batch by batch: no dense gradient is kept."""
    device = next(model.parameters()).device
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    probes = {
        name: shared and Probes(*(side.to(device) for side in shared))
        for name, shared in _shared_probes(shapes, start).items()
    }

    def sketched(name: str, gradient: Tensor) -> MatrixSketch:
        return sketch_of(gradient, probes[name])

    batches = contributor.batches(start.batch_size)
    sent = sum_over_batches(model, targets, batches, contributor.losses, sketched, add_sketches)
    return {
        f"{name}.{side}": (tensor / contributor.everyone).to("cpu", SENT_AS)
        for name, sketch in sent.items()
        for side, tensor in sketch._asdict().items()
    }


def _combine_sketches(
    shapes: Shapes, start: Start, messages: Iterable[tuple[Tensors, int]]
) -> dict[str, Factors]:
    """The sum of the sketches is all that is looked at. The rule is applied to what comes back, since the
    sign of a sum is no sum of signs."""
    total = summed(messages, torch.float64)
    reduce, probes = reducer(start), _shared_probes(shapes, start)

    def factors(name: str) -> Factors:
        sketch = MatrixSketch(*(total.pop(f"{name}.{side}") for side in MatrixSketch._fields))
        return reduce(name, apply_rule(name, matrix_of(sketch, probes[name]), step_rule(start), 1.0))

    return finished({name: factors(name) for name in shapes}, start)


def _shared_probes(shapes: Shapes, start: Start) -> dict[str, Probes | None]:
    """Every party draws the same ones."""
    width = directions_sent(start)
    return {
        name: draw_probes(shape, width, generator=torch_generator(start.seed, "sketch", name))
        for name, shape in shapes.items()
    }


def _sketch_like(shapes: Shapes, start: Start) -> Tensors:
    template: Tensors = {}
    for name, shape in shapes.items():
        widths = sketch_widths(shape, directions_sent(start), COLUMNS_PER_DIRECTION)
        columns, rows = (shape.n_in, 0) if widths is None else widths
        template |= {f"{name}.columns": empty(shape.out, columns), f"{name}.rows": empty(rows, shape.n_in)}
    return template


SKETCH = Contribution(
    "sketches of gradients", _send_sketch, _combine_sketches, _sketch_like, norms_of(*MatrixSketch._fields)
)
