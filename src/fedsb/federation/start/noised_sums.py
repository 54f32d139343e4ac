"""What a client sends for private bases: its noised sum of clipped per-example gradients, layer by layer.

The sums travel whole: the best factors of one client's alone would be mostly noise. R0 is zero, since it
would be as large as the noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from fedsb.adapter import Factors
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
    summed,
)
from fedsb.federation.start.settings import Start
from fedsb.privacy.private_start import noised_gradient_sums


def _send(
    model: nn.Module, targets: Mapping[str, nn.Module], start: Start, contributor: Contributor
) -> Tensors:
    """The client's message, charged before it leaves."""
    private, client = start.private, contributor.client
    assert private is not None
    batches, losses = contributor.batches(start.batch_size), contributor.losses
    plan, noise = private.plans[client], private.noise
    sums = noised_gradient_sums(model, targets, batches, losses, plan, noise=noise, client=client)
    private.charge(client)
    return {f"{name}.sum": tensor.to(SENT_AS) for name, tensor in sums.items()}


def _combine(shapes: Shapes, start: Start, messages: Iterable[tuple[Tensors, int]]) -> dict[str, Factors]:
    total, reduce = summed(messages, torch.float32), reducer(start)
    found = {name: reduce(name, total.pop(f"{name}.sum")) for name in shapes}
    return {name: _with_zero_core(factors) for name, factors in finished(found, start).items()}


def _with_zero_core(factors: Factors) -> Factors:
    return factors if factors.R is None else factors._replace(R=torch.zeros_like(factors.R))


def _like(shapes: Shapes, start: Start) -> Tensors:
    return {f"{name}.sum": empty(*shape) for name, shape in shapes.items()}


NOISED_SUMS = Contribution("noised sums of clipped gradients", _send, _combine, _like, norms_of("sum"))
