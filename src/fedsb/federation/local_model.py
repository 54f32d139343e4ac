"""What a party holds, and how a round's values get into it.

A party has the base model with its adapter, the task head, and what was sent once (the start factors). Each
round's values come from a broadcast (or, for evaluation, from the server's state) at the party's rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.adapter.attached import Attached, set_base_updates, set_factors, set_trained
from fedsb.adapter.layer import Factors, leading
from fedsb.adapter.linear import features
from fedsb.adapter.routing import Routing, routing_of
from fedsb.common.seeding import torch_generator
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import USAGE, Exchange, Part

Example = dict[str, Any]
Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Example]], Batch]
Losses = Callable[[nn.Module, Batch], Tensor]


@dataclass
class LocalModel:
    """A party's model and what it needs to train it.

    Attributes:
        start: the factors as they were sent once or drawn, at the largest rank.
        rank: the rank the layers have now.
        base_round: the round whose base weights the model has now (0: untouched).
    """

    attached: Attached
    task_head: Mapping[str, nn.Parameter]
    exchange: Exchange
    start: Mapping[str, Factors]
    collate: Collate
    losses: Losses
    device: torch.device
    rank: int = 0
    base_round: int = 0

    @property
    def model(self) -> nn.Module:
        return self.attached.model


def load_round(
    local_model: LocalModel,
    shared: Mapping[str, Tensor],
    part: Part,
    *,
    round_number: int,
    seed: int,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, nn.Parameter]:
    """Put the round's values at this part's rank into the model; the parameters that train, by name.

    Factors come from `shared` (the broadcast) where the method sends them, from `kept` (of one client) where
    they stay with it, from a fresh draw of the shared seed where they train and do neither, and stay as they
    started otherwise.
    """
    exchange, layers = local_model.exchange, local_model.start
    if exchange.experts is not None:
        _set_routing(local_model, shared, part)
    values = {name: _values(local_model, name, shared, part, round_number, seed) for name in layers}
    for name in layers:
        values[name] |= _kept(local_model, name, part, kept or {})
    set_factors(local_model.attached, values)
    local_model.rank = part.rank
    with torch.no_grad():
        for name, parameter in local_model.task_head.items():
            parameter.copy_(shared[name])
    return trained_parameters(local_model, round_number)


def trained_parameters(local_model: LocalModel, round_number: int) -> dict[str, nn.Parameter]:
    """Let what trains in this round ask for gradients, and no other factor; these parameters, by name."""
    names = local_model.exchange.method.trains(round_number)
    return set_trained(local_model.attached, names) | dict(local_model.task_head)


def _routing(local_model: LocalModel) -> Routing:
    routing = routing_of(local_model.model)
    assert routing is not None, "a mixture has a routing"
    return routing


def _set_routing(local_model: LocalModel, shared: Mapping[str, Tensor], part: Part) -> None:
    """Route a mixture by the part's own experts, or by the gate."""
    routing = _routing(local_model)
    routing.hard, routing.held, routing.used = part.experts is not None, part.experts, None
    routing.usage = shared.get(USAGE, routing.usage)


def _values(
    local_model: LocalModel,
    layer: str,
    shared: Mapping[str, Tensor],
    part: Part,
    round_number: int,
    seed: int,
) -> dict[str, Tensor]:
    """The factors of one layer that are to be written, by name."""
    method = local_model.exchange.method
    values = {f: shared[key] for f in method.sends if (key := f"{layer}.{f}") in shared}
    if local_model.exchange.experts is not None and "R" not in values:
        values["R"] = _routing(local_model).cores[layer]
    restarted = set(method.trains(round_number)) - set(method.sends) - set(method.stays)
    frozen = set() if local_model.rank == part.rank else set("AB") - set(method.sends)
    held = local_model.start[layer]
    if restarted and method.draw is not None:
        shape = features(local_model.attached.layers[layer].base)
        generator = torch_generator(seed, "restart", round_number, layer)
        held = method.draw(*shape, local_model.exchange.rank, generator=generator)
    held = leading(held, local_model.exchange.rank_of(layer, part.rank))
    return values | {f: getattr(held, f) for f in restarted | frozen}


def _kept(local_model: LocalModel, layer: str, part: Part, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stays with a client of one layer: as it left it, or as it starts."""
    exchange = local_model.exchange
    start = leading(local_model.start[layer], exchange.rank_of(layer, part.rank))
    stays = exchange.method.stays
    return {f: kept.get(f"{layer}.{f}", getattr(start, f)) for f in stays}


def apply_base_change(local_model: LocalModel, header: wire.Header, numbers: Tensor) -> None:
    """Bring the base weights to what they are before `header.round`, if they are not there already.

    Raises:
        UpdateRejected: they are not those that the message adds to.
    """
    held, needed = local_model.base_round, header.needs or 0
    if not (needed <= held < header.round):
        raise UpdateRejected(
            f"wrong base weights: this client's are those after round {held}, the message is for those after "
            f"round {needed} to {header.round - 1}; what it kept was lost or is of another run"
        )
    if header.base is None or held >= header.round - 1:
        return
    named = local_model.exchange.base(header.base).unflatten(numbers)
    for name, layer in local_model.attached.layers.items():
        dense = named.get(f"{name}.base")
        update = named[f"{name}.base.B"] @ named[f"{name}.base.A"] if dense is None else dense
        adds = header.base > 0 and layer.base_update is not None
        layer.set_base_update(layer.base_update + update if adds else update)  # type: ignore[operator]
    local_model.base_round = header.round - 1


def keep_cores(local_model: LocalModel, header: wire.Header, numbers: Tensor) -> None:
    """Keep all cores of a mixture that follow in a message.

    Raises:
        UpdateRejected: they are needed in this round, and do not follow and were never kept.
    """
    exchange, routing = local_model.exchange, _routing(local_model)
    if header.cores:
        cores = exchange.cores().unflatten(numbers)
        routing.cores = {layer: cores[f"{layer}.R"] for layer in exchange.layers}
    if exchange.needs_cores(header.round) and not routing.cores:
        raise UpdateRejected(
            "this client was sent the experts once, and what it kept was lost or is of another run"
        )


def load_state(
    local_model: LocalModel, vector: Tensor, total: Mapping[str, Tensor], *, round_number: int, seed: int
) -> None:
    """Put a server's state after `round_number` into the model: what it shares, and all it added to W0."""
    exchange = local_model.exchange
    if total and local_model.base_round != round_number:
        set_base_updates(local_model.attached, total)
        local_model.base_round = round_number
    shared = exchange.down(exchange.rank).unflatten(vector)
    load_round(local_model, shared, exchange.whole, round_number=round_number + 1, seed=seed)
