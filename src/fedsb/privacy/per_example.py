"""Per-example gradients of the adapter's factors, told to Opacus.

With z = A x (rows of tokens), u = B^T g (g the gradient at the layer's output), per example n and head h:

    F: F sum_t (z u^T + u z^T)
    R: s_h sum_t u_h z_h^T      s: <R_h, sum_t u_h z_h^T>
    B: sum_t g (core z)^T       A: sum_t (core^T u) x^T          all times the layer's scale

Of a mixture, with p the weights of its experts e at each token, and a the gradient at the gate's scores:

    R_e: sum_t p_te u z^T       G: sum_t a [q; 1]^T, of which a counts all that depends on p

Sums run over the example's own tokens. They are formed in fp32 at least: what Opacus clips must be what was
measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.adapter import LowRankLinear
from fedsb.adapter.routing import Gate


def factor_gradients(
    layer: LowRankLinear, activations: list[Tensor], backprops: Float[Tensor, "n *t out"]
) -> dict[nn.Parameter, Tensor]:
    """Opacus' grad sampler of the adapter layer: each trained factor's gradients, examples first."""
    x, g = tokens(activations[0]), tokens(backprops) * layer.scale
    A, B = layer.A.detach().to(x.dtype), layer.B.detach().to(x.dtype)
    z, u = x @ A.T, g @ B
    if layer.routing is not None:
        return _expert_gradients(layer, z, u)
    core_z, core_u = z, u
    if (core := layer.core()) is not None:
        core = core.detach().to(x.dtype)
        core_z, core_u = _blocks(z, core, "hoi"), _blocks(u, core, "hio")
    gradients = _core_gradients(layer, z, u)
    if layer.F is not None and layer.F.requires_grad:
        F = layer.F.detach().to(x.dtype)
        gradients[layer.F] = torch.einsum("ntr,ntk->nrk", z @ F.T, u) + torch.einsum(
            "ntr,ntk->nrk", u @ F.T, z
        )
    if layer.B.requires_grad:
        gradients[layer.B] = torch.einsum("nto,ntk->nok", g, core_z)
    if layer.A.requires_grad:
        gradients[layer.A] = torch.einsum("ntk,nti->nki", core_u, x)
    return gradients


def _core_gradients(layer: LowRankLinear, z: Tensor, u: Tensor) -> dict[nn.Parameter, Tensor]:
    R, s = layer.R, layer.s
    if R is None or not (R.requires_grad or (s is not None and s.requires_grad)):
        return {}
    heads, r, _ = R.shape
    pairs = torch.einsum("ntho,nthi->nhoi", u.unflatten(-1, (heads, r)), z.unflatten(-1, (heads, r)))
    gradients: dict[nn.Parameter, Tensor] = {}
    if R.requires_grad:
        gradients[R] = pairs if s is None else pairs * s.detach().to(pairs.dtype)[:, None, None]
    if s is not None and s.requires_grad:
        gradients[s] = torch.einsum("nhoi,hoi->nh", pairs, R.detach().to(pairs.dtype))
    return gradients


def _expert_gradients(layer: LowRankLinear, z: Tensor, u: Tensor) -> dict[nn.Parameter, Tensor]:
    R, routing = layer.R, layer.routing
    assert R is not None
    assert routing is not None
    if not R.requires_grad:
        return {}
    with torch.no_grad():
        p = routing.weights(layer, z).to(z.dtype)
    return {R: torch.einsum("nte,nto,nti->neoi", p.expand(-1, z.shape[1], -1), u, z)}


def gate_gradients(
    gate: Gate, activations: list[Tensor], backprops: Float[Tensor, "n t e"]
) -> dict[nn.Parameter, Tensor]:
    """Opacus' grad sampler of a mixture's gate."""
    q = activations[0].to(torch.promote_types(backprops.dtype, torch.float32))
    directions = torch.einsum("nte,ntk->nek", backprops.to(q.dtype), q)
    return {gate.weight: torch.cat([directions, backprops.to(q.dtype).sum(1)[..., None]], -1)}


def _blocks(rows: Float[Tensor, "n t k"], core: Float[Tensor, "h r r"], order: str) -> Tensor:
    """Each head's block of the rows through its core, or through the transposed core."""
    blocks = rows.unflatten(-1, core.shape[:2])
    return torch.einsum(f"nth{order[2]},{order}->nth{order[1]}", blocks, core).flatten(-2)


def tokens(rows: Tensor) -> Float[Tensor, "n t k"]:
    """Rows of each example's tokens, in fp32 at least; examples without an axis of tokens have one."""
    rows = (rows if rows.dim() > 2 else rows[:, None]).flatten(1, -2)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


@contextmanager
def per_example_gradients(model: nn.Module) -> Iterator[None]:
    """Inside the block, backward leaves `grad_sample` on every trained parameter."""
    from opacus.grad_sample import GradSampleHooks, register_grad_sampler

    register_grad_sampler(LowRankLinear)(factor_gradients)
    register_grad_sampler(Gate)(gate_gradients)
    hooks = GradSampleHooks(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()


def batch_norms(model: nn.Module) -> list[str]:
    """Layers that mix a batch's examples, so that no example has a gradient of its own."""
    mixing: Any = nn.modules.batchnorm._BatchNorm
    return [name for name, module in model.named_modules() if isinstance(module, mixing)]
