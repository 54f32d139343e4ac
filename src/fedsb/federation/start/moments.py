"""Second moments of small-batch gradients, as sketches that add up, and the directions they lead to.

For a layer with gradients g_1, g_2, ... of small batches, L = sum g g^T and R = sum g^T g (the statistics of
Shampoo, Gupta et al. 2018, arXiv 1802.09568) say in which output and input directions gradients move at all,
while the mean gradient says where they agree. Instead of L and R a party keeps L @ P and R @ Q for shared
random P and Q: sums over batches and clients stay sums, so a server needs no client's own, and a layer
costs (out + in) * width numbers. Leading eigenvectors come back by the Nystrom approximation (Tropp
et al. 2017, arXiv 1706.05736).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.bases import column_signs, orthonormal_columns
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import sum_over_batches
from fedsb.common.seeding import torch_generator
from fedsb.federation.start.contribution import (
    Contribution,
    Contributor,
    Shapes,
    Tensors,
    in_frame,
    norms_of,
    summed,
)
from fedsb.federation.start.settings import Start
from fedsb.methods.method import Shape

WIDER = 1.5
"""Columns of a sketch for each direction that is asked for."""


class MomentSketch(NamedTuple):
    """L @ P and R @ Q of one layer."""

    left: Float[Tensor, "out width"]
    right: Float[Tensor, "in width"]


def add(first: MomentSketch, second: MomentSketch) -> MomentSketch:
    """The sketch of two parties, or of two batches, together."""
    return MomentSketch(first.left + second.left, first.right + second.right)


def probes(out: int, n_in: int, rank: int, *, generator: torch.Generator) -> MomentSketch:
    """P and Q: orthonormal columns, WIDER * rank of them, or as many as the layer has."""
    width = round(WIDER * rank)
    return MomentSketch(*(orthonormal_columns(size, min(width, size), generator) for size in (out, n_in)))


def sketch_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    losses: Callable[[nn.Module, Any], Float[Tensor, "batch"]],
    shared: Mapping[str, MomentSketch],
) -> dict[str, MomentSketch]:
    """One sketch per layer, on the CPU, of the gradients of each batch's summed loss.

    Memory beyond the backward pass: one layer's gradient, and the sketches.

    Raises:
        RunFailed: no gradient reached a layer, or it is not finite.
    """
    device = next(model.parameters()).device
    local = {name: MomentSketch(*(side.to(device) for side in probe)) for name, probe in shared.items()}

    def moments_of(name: str, gradient: Tensor) -> MomentSketch:
        P, Q = local[name]
        return MomentSketch(gradient @ (gradient.T @ P), gradient.T @ (gradient @ Q))

    total = sum_over_batches(model, layers, batches, losses, moments_of, add)
    return {name: MomentSketch(*(side.cpu() for side in sketch)) for name, sketch in total.items()}


def leading_directions(
    sketch: Float[Tensor, "size width"], probe: Float[Tensor, "size width"], rank: int
) -> Float[Tensor, "size rank"]:
    """The leading eigenvectors of the positive semidefinite M from M @ probe, best first."""
    Y, P = sketch.double(), probe.double()
    scale = torch.linalg.matrix_norm(Y)
    if scale == 0:
        return P[:, :rank].float()
    shift = 1e-10 * scale
    Y = Y + shift * P
    inner = P.T @ Y
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    root = vectors / values.clamp_min(shift).sqrt()
    U, _, _ = torch.linalg.svd(Y @ root, full_matrices=False)
    U = U[:, :rank]
    return (U * column_signs(U)).float().contiguous()


MOMENT_BATCH = 4
"""Examples whose summed gradient counts as one in the second moments."""


def _send_moments(
    model: nn.Module, targets: Mapping[str, nn.Module], start: Start, contributor: Contributor
) -> Tensors:
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    shared = _moment_probes(shapes, start)
    batches = contributor.batches(MOMENT_BATCH)
    return _by_name(sketch_moments(model, targets, batches, contributor.losses, shared))


def _by_name(sketches: Mapping[str, MomentSketch]) -> Tensors:
    return {f"{n}.{side}": t for n, sketch in sketches.items() for side, t in sketch._asdict().items()}


def _combine_moments(
    shapes: Shapes, start: Start, messages: Iterable[tuple[Tensors, int]]
) -> dict[str, Factors]:
    """R0 is zero, since moments have no sign."""
    total = summed(messages, torch.float32)
    rank, shared = start.heads * start.rank, _moment_probes(shapes, start)
    found = {
        name: Factors(
            B=leading_directions(total[f"{name}.left"], probe.left, rank),
            A=leading_directions(total[f"{name}.right"], probe.right, rank).T.contiguous(),
            R=torch.zeros(start.heads, start.rank, start.rank),
        )
        for name, probe in shared.items()
    }
    return {name: in_frame(factors, start, name) for name, factors in found.items()}


def _moment_probes(shapes: Shapes, start: Start) -> dict[str, MomentSketch]:
    width = start.heads * start.rank
    return {
        name: probes(*shape, width, generator=torch_generator(start.seed, "probes", name))
        for name, shape in shapes.items()
    }


def _moments_like(shapes: Shapes, start: Start) -> Tensors:
    return _by_name(_moment_probes(shapes, start))


MOMENTS = Contribution(
    "sketches of gradient moments",
    _send_moments,
    _combine_moments,
    _moments_like,
    norms_of(*MomentSketch._fields),
)
