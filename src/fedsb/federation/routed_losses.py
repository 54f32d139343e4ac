"""What gate rounds add to the task's losses, one example at a time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fedsb.adapter.attached import Attached
from fedsb.adapter.routing import Terms, noting, penalties, routing_of
from fedsb.federation.local_model import Batch, Losses


def with_penalties(losses: Losses, attached: Attached, terms: Terms) -> Losses:
    """The task's losses, and in gate rounds what `terms` adds to them."""
    routing = routing_of(attached.model)
    if routing is None or not any(terms):
        return losses

    def added(model: nn.Module, batch: Batch) -> Tensor:
        if routing.hard:
            return losses(model, batch)
        with noting(model) as notes:
            task = losses(model, batch)
        return task + penalties(notes, routing, terms) + terms.keep * distance(attached, routing.cores)

    return added


def distance(attached: Attached, cores: Mapping[str, Tensor]) -> Tensor | float:
    """The squared distance of all cores from these; 0 where none are known."""
    squares: Tensor | float = 0.0
    for name, before in cores.items():
        core = attached.layers[name].R
        assert core is not None
        squares = squares + (core - before.to(core)).square().sum()
    return squares
