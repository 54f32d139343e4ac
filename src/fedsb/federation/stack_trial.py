"""Whether clients can be stacked, tried out on two of them, and how long their batches take in one pass.

A model may do with its layers what the rows of a batch do not show: give them positions, or tokens of all
rows in another order. So two clients' gradients in one pass are compared with those of each one alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from fedsb.adapter.stacked import OtherRows
from fedsb.common.seeding import scoped_global_seed
from fedsb.errors import UpdateRejected
from fedsb.federation.dropout import without_dropout
from fedsb.federation.fixed_shape import computes_in_16_bits
from fedsb.federation.local_model import LocalModel
from fedsb.federation.stacked import (
    Asked,
    Member,
    PassCost,
    add_gradients,
    begin_all,
    give_gradients,
    stacked,
)
from fedsb.federation.training import ClientFailed, LocalTraining, autocast, to_device
from fedsb.tasks.task import length_of

TOGETHER = PassCost(apart=1 << 62, most=1 << 62)
"""At which nothing passes apart."""
REPEATS = 3
"""Of a pass whose time is taken."""
MAY_DIFFER, SMALLEST = 1e-3, 1e-9
MAY_DIFFER_IN_16_BITS, SMALLEST_IN_16_BITS = 0.1, 1e-3
"""How far a client's gradient of a parameter may be from its own alone, as a share of its norm, or of this
share of that of all parameters."""


def not_stackable(local_model: LocalModel, round_number: int) -> str | None:
    """What of the parameters that train in this round cannot be stacked, in words; None: nothing."""
    exchange = local_model.exchange
    if own := set(exchange.method.stays) - set(exchange.method.trains(round_number)):
        return f"{', '.join(sorted(own))} differs between clients and does not train in this round"
    for name in local_model.task_head:
        owner = name.rpartition(".")[0]
        module = local_model.model.get_submodule(owner) if owner else None
        if module is None or any(module.children()):
            return f"the task head's {name} lies beside other modules, not in one of its own"
    return None


def unlike_alone(
    asked: Sequence[Asked], local_model: LocalModel, training: LocalTraining, seed: int
) -> str | None:
    """How the gradients of two of these clients' first batches differ in one pass from each one's alone, in
    words; None: by rounding. A model that mixes rows, or whose layers see others than a batch has, cannot be
    stacked."""
    pair = _unlike_in_length(asked)
    try:
        alone = {one.client: _gradient_alone(one, local_model, training, seed) for one in pair}
        for client, together in _gradients_together(pair, local_model, training, seed).items():
            in_16_bits = computes_in_16_bits(local_model.model, training.autocast)
            if name := _first_unlike(together, alone[client], in_16_bits=in_16_bits):
                return f"the gradient of {name} is not that of the client alone: the model mixes rows"
    except (ClientFailed, UpdateRejected):
        return None  # the round will say so
    except OtherRows as reason:
        return str(reason)
    except Exception as error:
        return f"a pass of two clients failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None


def _first_unlike(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, in_16_bits: bool
) -> str | None:
    share, smallest = (MAY_DIFFER_IN_16_BITS, SMALLEST_IN_16_BITS) if in_16_bits else (MAY_DIFFER, SMALLEST)
    expected = {name: value.nan_to_num() for name, value in expected.items()}  # it may be of one row
    whole = torch.stack([value.norm().cpu() for value in expected.values()]).norm()
    for name, value in expected.items():
        if not (found[name].nan_to_num() - value).norm().cpu() <= share * max(
            value.norm().cpu(), smallest * whole
        ):
            return name
    return None


def _unlike_in_length(asked: Sequence[Asked]) -> list[Asked]:
    def mean(one: Asked) -> float:
        return sum(map(length_of, one.examples)) / max(1, len(one.examples))

    ordered = sorted(asked, key=mean)
    return [ordered[0], ordered[-1]]


def _gradient_alone(
    one: Asked, local_model: LocalModel, training: LocalTraining, seed: int
) -> dict[str, Tensor]:
    """Of the mean loss of a client's first batch, dropout off."""
    (member,) = _begun([one], local_model, training, seed)
    with without_dropout(local_model.model):
        plain_pass(member, local_model, training)
    return _taken(member.begun.parameters)


def plain_pass(member: Member, local_model: LocalModel, training: LocalTraining) -> float:
    """Forward and backward of a client's first batch, without the others; its mean loss."""
    batch = to_device(local_model.collate(member.batch(0)), local_model.device)
    with autocast(training, local_model.device):
        loss = local_model.losses(local_model.model, batch).mean()
    loss.backward()
    return float(loss.item())


def _gradients_together(
    asked: Sequence[Asked], local_model: LocalModel, training: LocalTraining, seed: int
) -> dict[int, dict[str, Tensor]]:
    members = _begun(asked, local_model, training, seed)
    with (
        stacked(local_model, members) as (leaves, passing),
        without_dropout(local_model.model),
    ):
        seen = {member.place: len(member.batches[0]) for member in members}
        add_gradients(local_model, members, passing, training, 0, seen, cost=TOGETHER)
    for member in members:
        give_gradients(leaves, member)
    return {member.asked.client: _taken(member.parameters) for member in members}


def _begun(
    asked: Sequence[Asked], local_model: LocalModel, training: LocalTraining, seed: int
) -> list[Member]:
    failed: dict[int, bytes | Exception] = {}
    members = begin_all(asked, local_model, training, seed, failed)
    for reason in failed.values():
        assert isinstance(reason, Exception)
        raise reason
    return members


def _taken(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients, taken off."""
    found = {}
    for name, parameter in parameters.items():
        gradient, parameter.grad = parameter.grad, None
        found[name] = torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
    return found


def seconds_per_client(
    asked: Sequence[Asked], local_model: LocalModel, training: LocalTraining, seed: int
) -> float:
    """What a batch's forward and backward take for each of these clients in one pass; of one, without a
    stack. The least of REPEATS after one more.

    Raises:
        ClientFailed, UpdateRejected: a client cannot train.
    """
    members = _begun(asked, local_model, training, seed)
    one_pass: Callable[[], object] = partial(plain_pass, members[0], local_model, training)
    with ExitStack() as block:
        if len(members) > 1:
            leaves, passing = block.enter_context(stacked(local_model, members))
            seen = {member.place: len(member.batches[0]) for member in members}
            one_pass = partial(add_gradients, local_model, members, passing, training, 0, seen)
        else:
            leaves = members[0].begun.parameters
        block.enter_context(scoped_global_seed(seed, "measurement"))
        local_model.model.train()
        times = []
        for _ in range(1 + REPEATS):
            began = time.monotonic()
            one_pass()
            times.append(time.monotonic() - began)
            _taken(leaves)
    return min(times[1:]) / len(members)
