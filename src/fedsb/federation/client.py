"""Local training: a broadcast in, an update out. The same function serves simulation and deployment.

    bytes -> vector -> factors of the client's part -> optimizer steps on its examples -> vector -> bytes

Between rounds a client keeps what was sent once and, for methods that change them, its base weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.adapter import FACTOR_NAMES
from fedsb.adapter.routing import routing_of
from fedsb.common.seeding import torch_generator
from fedsb.federation import wire
from fedsb.federation.beside import Beside
from fedsb.federation.exchange import USAGE, Exchange, Part
from fedsb.federation.local_model import Example, LocalModel, apply_base_change, keep_cores, load_round
from fedsb.federation.second_exchange import forget, remembered
from fedsb.federation.training import ClientFailed, LocalTraining, OnStep, Train, train
from fedsb.methods.method import UploadInputs


def client_update(
    broadcast: bytes,
    local_model: LocalModel,
    examples: Sequence[Example],
    training: LocalTraining,
    *,
    client: int,
    seed: int,
    part: Part | None = None,
    registered: int | None = None,
    on_step: OnStep = lambda num_examples: None,
    train_with: Train | None = None,
    kept: Kept | None = None,
) -> bytes:
    """The answer of one client in one round.

    Args:
        registered: the count of examples that the answer declares; None: of these.
        train_with: what trains in place of `train`; if it returns None, no loss is declared.
        kept: what stays with this client, in methods where something does: read, and written once there is
            an answer.

    Raises:
        UpdateRejected: the broadcast is no message for this part of this method.
        ClientFailed: the loss is not finite, the time is up, or a number is too large for its upload.
    """
    begun = begin_update(broadcast, local_model, examples, seed=seed, part=part, kept=kept)
    mean_loss = (train_with or train)(
        local_model,
        begun.parameters,
        examples,
        training,
        masks=begun.masks,
        round_number=begun.header.round,
        client=client,
        seed=seed,
        on_step=on_step,
        **begun.for_training(begun.parameters),
    )
    return finish_update(
        begun,
        local_model,
        training,
        mean_loss,
        client=client,
        seed=seed,
        num_examples=len(examples),
        registered=registered,
        kept=kept,
    )


Kept = dict[str, Tensor]
"""What stays with one client from round to round, as `layer.FACTOR`; empty before its first round."""


@dataclass
class Begun:
    """An update before its training.

    Attributes:
        parameters: those that train, in the model.
        shared: what the broadcast held, by name.
        before: their values, where something is made of how they change.
        masks: as `train` takes them.
    """

    header: wire.Header
    part: Part
    parameters: dict[str, nn.Parameter]
    shared: dict[str, Tensor]
    before: dict[str, Tensor]
    masks: dict[str, Tensor]
    beside: Beside | None

    def for_training(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """More arguments of `train`, for parameters of these names."""
        return self.beside.for_training(parameters) if self.beside else {}


def begin_update(
    broadcast: bytes,
    local_model: LocalModel,
    examples: Sequence[Example],
    *,
    seed: int,
    part: Part | None = None,
    kept: Kept | None = None,
) -> Begun:
    """Put a broadcast into the model, for this client's training.

    Raises:
        UpdateRejected: the broadcast is no message for this part of this method.
        ClientFailed: there are no examples.
    """
    if not examples:
        raise ClientFailed("it holds no examples")
    exchange, part = local_model.exchange, part or local_model.exchange.whole
    header, parameters, shared = open_broadcast(broadcast, local_model, part, seed=seed, kept=kept)
    beside = Beside.of(exchange, header.round, shared, kept or {}) if exchange.has_beside else None
    before = copied(parameters) if exchange.method.finish_upload or beside else {}
    return Begun(header, part, parameters, shared, before, _masks(exchange, parameters, part), beside)


def finish_update(
    begun: Begun,
    local_model: LocalModel,
    training: LocalTraining,
    mean_loss: float | None,
    *,
    client: int,
    seed: int,
    num_examples: int,
    registered: int | None = None,
    kept: Kept | None = None,
) -> bytes:
    """The answer, of what is trained in the model now; arguments as of `client_update`.

    Args:
        num_examples: that it was trained on.

    Raises:
        ClientFailed: a number is too large for its upload.
    """
    exchange, header, parameters, beside = local_model.exchange, begun.header, begun.parameters, begun.beside
    layout = exchange.up(header.round, begun.part)
    count = num_examples if registered is None else registered
    answer = wire.Header(header.method, header.round, layout.digest, client, count, mean_loss)
    settled = _answer(local_model, parameters, begun.before, begun.part, header.round, seed)
    if beside is not None:
        settled |= beside.sent(begun.before, parameters, training.rates(header.round, num_examples))
    vector = layout.flatten(settled | _usage(local_model, header.round))
    try:
        message = wire.pack(answer, vector, exchange.upload_dtype)
    except wire.Overflow as reason:
        raise ClientFailed(str(reason)) from None
    if kept is not None:
        if exchange.method.follow_up is not None:
            forget(kept)
            kept |= remembered(local_model, header.round)
        kept |= beside.to_keep() if beside else {}
        kept |= {name: parameters[name].detach().cpu().clone() for name in exchange.stays(header.round)}
    return message


def open_broadcast(
    broadcast: bytes, local_model: LocalModel, part: Part, *, seed: int, kept: Kept | None = None
) -> tuple[wire.Header, dict[str, nn.Parameter], dict[str, Tensor]]:
    """Put a broadcast into the model; its header, and the parameters that train in its round.

    What it shares, by name, comes third.

    Raises:
        UpdateRejected: the broadcast is no message for this part of this method.
    """
    header, vector = wire.unpack(broadcast)
    exchange = local_model.exchange
    layout = exchange.message(header.round, part, header.base, with_cores=bool(header.cores))
    expected = wire.Header(exchange.method.name, header.round, layout.digest)
    wire.check(header, vector, expected=expected, size=layout.size)
    down = exchange.broadcast(header.round, part)
    apply_base_change(local_model, header, vector[down.size :])
    if exchange.experts is not None:
        keep_cores(local_model, header, vector[down.size :])
    shared = down.unflatten(vector[: down.size])
    parameters = load_round(local_model, shared, part, round_number=header.round, seed=seed, kept=kept or {})
    return header, parameters, shared


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values that they have now, on their devices."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _answer(
    local_model: LocalModel,
    parameters: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    part: Part,
    round_number: int,
    seed: int,
) -> dict[str, Tensor]:
    """What goes up: trained factors as the method settles them (of heads that trained), and the task head."""
    exchange = local_model.exchange
    answer = {name: parameters[name].detach() for name in exchange.task_head}
    travel = [factor for factor in FACTOR_NAMES if factor not in exchange.method.stays]
    for layer in exchange.layers:
        factors = {f: p.detach() for f in travel if (p := parameters.get(f"{layer}.{f}")) is not None}
        if exchange.method.finish_upload is not None:
            known = UploadInputs(
                {f: before[f"{layer}.{f}"] for f in factors},
                {f: p.detach() for f, p in local_model.attached.layers[layer].factors().items()},
                round_number,
                torch_generator(seed, "upload", round_number, layer),
            )
            factors = dict(exchange.method.finish_upload(factors, known))
        for name, value in factors.items():
            answer[f"{layer}.{name}"] = value if part.heads is None else value[list(part.heads)]
    return answer


def _usage(local_model: LocalModel, round_number: int) -> dict[str, Tensor]:
    """The shares in which a mixture's experts were used while it trained, where losses depend on them."""
    exchange = local_model.exchange
    balances = exchange.experts is not None and exchange.experts.balances
    if not balances or exchange.routes_hard(round_number):
        return {}
    routing = routing_of(local_model.model)
    assert routing is not None
    assert routing.used is not None
    return {USAGE: routing.used / routing.used.sum()}


def _masks(exchange: Exchange, parameters: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """By parameter, 1 for the heads of the core that train and 0 for the others; empty if all do."""
    masks = {}
    for name, parameter in parameters.items():
        if part.heads is not None and name not in exchange.task_head:
            masks[name] = torch.zeros(len(parameter), *[1] * (parameter.dim() - 1), device=parameter.device)
            masks[name][list(part.heads)] = 1.0
    return masks
