"""A finished mixture as a value, and how it is put on a model and taken off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.adapter.attached import Attached, attach
from fedsb.adapter.layer import Factors
from fedsb.adapter.routing import Route, Routing, routing_of


@dataclass(frozen=True)
class Mixture:
    """Experts over shared frozen bases, and what routes to them.

    Attributes:
        experts: their names; expert e is at place e of R, G and usage.
        factors: by layer B (out, r), A (r, in), R (E, r, r), G (E, r + 1); no G with route: request.
        top_k: only so many experts of each place are mixed; None: all.
        usage: (E,) shares that sum to 1, the weights of the static mean; None: equal.
        gate: (E, d + 1) over the base's pooled states, with route: request.
    """

    experts: tuple[str, ...]
    factors: Mapping[str, Factors]
    route: Route = "sequence"
    top_k: int | None = None
    usage: Float[Tensor, "e"] | None = None
    gate: Float[Tensor, "e d1"] | None = None


def attach_mixture(model: nn.Module, mixture: Mixture, *, trains: Sequence[str] = ()) -> Attached:
    """Put the mixture over the model's layers; `adapter.detach` undoes it."""
    routing = Routing(mixture.experts, mixture.route, mixture.top_k, mixture.usage, mixture.gate)
    return attach(model, mixture.factors, trains=trains, routing=routing)


def mixture_of(attached: Attached) -> Mixture:
    """A copy of the mixture that is on the model.

    Raises:
        ValueError: it has none.
    """
    routing = routing_of(attached.model)
    if routing is None:
        raise ValueError("this model has one core, no mixture")
    factors = {name: Factors(**_copies(layer.factors())) for name, layer in attached.layers.items()}
    if routing.route == "request":
        factors = {name: part._replace(G=None) for name, part in factors.items()}
    return Mixture(routing.names, factors, routing.route, routing.top_k, routing.usage, routing.gate)


def _copies(factors: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    absent = dict.fromkeys(Factors._fields)
    return absent | {name: p.detach().cpu().clone() for name, p in factors.items()}  # type: ignore[return-value]


def with_experts(factors: Factors, count: int, G: Tensor | None) -> Factors:
    """One core's start as so many experts', all equal; several stay as they are."""
    assert factors.R is not None
    R = factors.R if len(factors.R) == count else factors.R.expand(count, -1, -1).clone()
    return factors._replace(R=R, G=G)


def start_gate(experts: int, size: int, *, jitter: float, generator: torch.Generator) -> Tensor:
    """(E, size + 1) near zero: every expert alike, but for normal noise of this size."""
    return jitter * torch.randn(experts, size + 1, generator=generator)
