"""One contributor's part in bases that are made of everybody's gradients: what it gets, sends, and what for.

`factors`, `sketches`, `moments` and `noised_sums` hold the ways there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.bases import bases_from_update, turned
from fedsb.adapter.update_estimate import Rule
from fedsb.common.seeding import torch_generator
from fedsb.errors import RunFailed
from fedsb.federation.local_model import Batch, Losses
from fedsb.federation.start.ranks import at_chosen_ranks, directions_kept
from fedsb.federation.start.robust import Sizes, evened
from fedsb.federation.start.settings import Start
from fedsb.methods.method import Shape

SENT_AS = torch.bfloat16

Tensors = dict[str, Tensor]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Contributor:
    """A contributor's examples.

    Attributes:
        batches: batch size -> its batches.
        everyone: how many examples all contributors have drawn together.
        client: whose they are.
        sums: where running sums are kept; None: in memory.
    """

    batches: Callable[[int], list[Batch]]
    losses: Losses
    everyone: int
    client: int
    sums: MutableMapping[str, Tensor] | None = None


class Contribution(NamedTuple):
    """One way to contribute.

    Attributes:
        what: its name in the ledger.
        send: (model, target layers, start, the contributor's examples) -> the message.
        combine: (layer shapes, start, messages with the number of examples behind each) -> start factors.
        template: (layer shapes, start) -> tensors of a message's names, shapes and types, without numbers.
        sizes: (message, layer) -> how large it is there.
    """

    what: str
    send: Callable[[nn.Module, Mapping[str, nn.Module], Start, Contributor], Tensors]
    combine: Callable[[Shapes, Start, Iterable[tuple[Tensors, int]]], dict[str, Factors]]
    template: Callable[[Shapes, Start], Tensors]
    sizes: Callable[[Tensors, str], Sizes]

    def bases(
        self, shapes: Shapes, start: Start, messages: Iterable[tuple[Tensors, int]]
    ) -> dict[str, Factors]:
        """Start factors of messages as they come; no client's dominates where the start is to be robust."""
        if start.robust:
            sizes = self.sizes
            messages = evened(((m, n), {name: sizes(m, name) for name in shapes}) for m, n in messages)
        return self.combine(shapes, start, messages)


def step_rule(start: Start) -> Rule:
    """The rule of a start that takes the SVD of an update."""
    assert start.rule != "moments"
    return start.rule


def reducer(start: Start) -> Callable[[str, Tensor], Factors]:
    """An update's leading directions, R the diagonal of its singular values; `finished` makes factors of them
    once there are all layers'."""

    def reduce(name: str, update: Tensor) -> Factors:
        generator = torch_generator(start.seed, "bases", name)
        rank = directions_kept(Shape(*update.shape), start)
        return bases_from_update(update, rank, heads=start.heads, generator=generator)

    return reduce


def finished(found: Mapping[str, Factors], start: Start) -> dict[str, Factors]:
    """Start factors of all layers' leading directions: at their ranks, R0 of the wished size, in the frame
    that is asked for."""
    factors = {}
    for name, unit in at_chosen_ranks(found, start).items():
        assert unit.R is not None
        factors[name] = in_frame(unit._replace(R=start.step_size * unit.R), start, name)
    return factors


def in_frame(factors: Factors, start: Start, name: str) -> Factors:
    """A layer's start factors in the frame that is asked for."""
    if start.frame == "singular" or factors.R is None:
        return factors
    return turned(factors, generator=torch_generator(start.seed, "frame", name))


def check_some(count: int) -> None:
    if not count:
        raise RunFailed("start: nobody contributed a gradient; the clients' own lines say why")


def summed(messages: Iterable[tuple[Tensors, int]], dtype: torch.dtype) -> Tensors:
    """The sum of all messages, tensor by tensor, in this type."""
    total: Tensors = {}
    for message, _ in messages:
        for name, tensor in message.items():
            total[name] = total[name] + tensor.to(dtype) if name in total else tensor.to(dtype)
    check_some(len(total))
    return total


def empty(*shape: int) -> Tensor:
    """As it travels, without numbers."""
    return torch.empty(shape, dtype=SENT_AS, device="meta")


def norms_of(*parts: str) -> Callable[[Tensors, str], Sizes]:
    """Sizes of messages that are linear in each of these tensors of a layer: their norms."""

    def sizes(message: Tensors, layer: str) -> Sizes:
        names = tuple(f"{layer}.{part}" for part in parts)
        return Sizes(tuple(float(message[name].double().norm()) for name in names), names)

    return sizes
