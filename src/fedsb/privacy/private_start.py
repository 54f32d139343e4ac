"""A client's part of private bases: its clipped and noised sum of per-example gradients of the base weights.

Data flow: Poisson sample -> backward -> each layer's gradient per example, scaled to 1 / sqrt(layers)
-> summed -> noise -> the server adds up the clients' sums -> SVD

The norm of an example's gradient sum_t g_t x_t^T is taken without forming it (Goodfellow 2015, arXiv
1510.01799; Li et al. 2021, arXiv 2110.05679): ||.||^2 = sum_{t,t'} <g_t, g_t'> <x_t, x_t'>.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import gradients_of
from fedsb.errors import RunFailed
from fedsb.privacy.noise import NoiseSource, add_noise
from fedsb.privacy.per_example import tokens
from fedsb.privacy.plan import StartPlan

TINY = 1e-60
CANCELLED = 1e-10
"""A squared norm this small beside its bound is rounding: tokens that cancel each other."""


def noised_gradient_sums(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    losses: Callable[[nn.Module, Any], Float[Tensor, "batch"]],
    plan: StartPlan,
    *,
    noise: NoiseSource,
    client: int,
) -> dict[str, Float[Tensor, "out in"]]:
    """Each layer's noised sum, on the CPU.

    Guarantees: one example more or less moves all layers' sums together by at most `plan.sensitivity` in L2;
    each entry gets noise of `plan.noise_std`.

    Args:
        batches: of the client's sampled examples; may be none.
        losses: (model, batch) -> one loss per example, which must not depend on the batch's other examples.

    Raises:
        RunFailed: a layer is used more than once in a forward pass, so that its norm is not one number.
    """
    norm = plan.sensitivity / math.sqrt(len(layers))
    sums = {name: torch.zeros(features(layer)) for name, layer in layers.items()}

    def consume(name: str, gradient: Tensor, done: bool) -> None:
        if not done:
            raise RunFailed(
                f"private start: layer {name!r} is used more than once; leave it out of method.targets"
            )
        sums[name] += gradient.cpu()

    with gradients_of(layers, consume, combine=lambda g, x: scaled_sum(g, x, norm)):
        for batch in batches:
            losses(model, batch).sum().backward()
    stream = noise.stream("start", client)
    return {name: add_noise(total, plan.noise_std, stream) for name, total in sums.items()}


def scaled_sum(
    gradient: Float[Tensor, "n *t out"], x: Float[Tensor, "n *t in"], norm: float
) -> Float[Tensor, "out in"]:
    """The sum over examples of their weight gradients, each scaled to this norm, in fp64; one that is zero
    or not finite stays out."""
    g, x = tokens(gradient).double(), tokens(x).double()
    squared = ((g @ g.transpose(1, 2)) * (x @ x.transpose(1, 2))).sum((1, 2))
    scale = norm / squared.clamp_min(TINY).sqrt()
    at_most = g.square().sum((1, 2)) * x.square().sum((1, 2))
    usable = torch.isfinite(at_most) & (squared > CANCELLED * at_most) & (squared > TINY)
    g = torch.where(usable[:, None, None], g * scale[:, None, None], 0.0)
    x = torch.where(usable[:, None, None], x, 0.0)
    return g.flatten(0, 1).T @ x.flatten(0, 1)
