"""Several clients trained in one pass: their batches go through the frozen base together.

    each client  broadcast -> its parameters, a slice of the stack's
    each step    batches of all that have one -> passes of like length -> losses of examples
                 -> their mean for each client, summed -> gradients of the stack
                 -> of each client's slice: masked, clipped, the optimizer's step
    each client  its slice back into the model -> its answer

A client's loss depends on its own slice alone, so the gradient of the sum is each one's own. Rows that fill
a client's batch up weigh nothing. Order of the batches, optimizer, rates and steps are those of the client
alone (`training`), and so are the numbers, up to rounding. Dropout's masks are drawn for the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsb.adapter.stacked import Passing, StackedLinear, StackedModule, in_place_of
from fedsb.common.seeding import scoped_global_seed
from fedsb.errors import UpdateRejected
from fedsb.federation.client import Begun, Kept, begin_update, copied, finish_update
from fedsb.federation.exchange import Part
from fedsb.federation.local_model import Example, LocalModel, load_round, trained_parameters
from fedsb.federation.moments import Moments
from fedsb.federation.training import (
    ClientFailed,
    LocalTraining,
    OnStep,
    Pull,
    autocast,
    batches_of_round,
    filter_gradients,
    make_optimizer,
    parameter_groups,
    resting,
    set_learning_rate,
    take_step,
    to_device,
)
from fedsb.tasks.task import length_of


class PassCost(NamedTuple):
    """What passes cost on a device, in tokens of the model.

    Attributes:
        apart: one more pass, beside its tokens.
        most: the most tokens of a pass of several clients, from where a pass of each is as fast.
    """

    apart: int
    most: int


ON_CPU, ELSEWHERE = PassCost(apart=32, most=1024), PassCost(apart=4096, most=1 << 62)
"""A CPU's caches hold so many; other devices idle at small batches."""


@dataclass(frozen=True)
class Asked:
    """A client that is to train in a stack; fields as of `client_update`."""

    client: int
    broadcast: bytes
    examples: Sequence[Example]
    part: Part
    registered: int | None = None
    kept: Kept | None = None


TrainStack = Callable[..., None]
"""A trainer of a stack with the arguments of `train_stacked`."""


@dataclass
class Member:
    """A client in its stack.

    Attributes:
        place: its slice of the stack.
        values: its parameters as the round begins.
        batches: of its round, as indices of its examples.
        parameters: views of its slice, as far as its rank goes.
    """

    asked: Asked
    begun: Begun
    place: int
    values: Mapping[str, Tensor]
    batches: list[list[int]]
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    loss_sum: float = 0.0
    failure: ClientFailed | None = None

    def batch(self, number: int) -> list[Example]:
        """Its examples of this batch of the round."""
        return [self.asked.examples[i] for i in self.batches[number]]

    @property
    def mean_loss(self) -> float:
        """Over the examples that it has seen."""
        return self.loss_sum / sum(map(len, self.batches))


def stacked_updates(
    asked: Sequence[Asked],
    local_model: LocalModel,
    training: LocalTraining,
    *,
    seed: int,
    train_with: TrainStack | None = None,
    declares_loss: bool = True,
    on_step: OnStep = lambda num_examples: None,
) -> Iterator[tuple[int, bytes | Exception]]:
    """Each client's answer, as `client_update` would give it, or why there is none, in their order.

    Args:
        train_with: what trains in place of `train_stacked`.
    """
    found: dict[int, bytes | Exception] = {}
    members = begin_all(asked, local_model, training, seed, found)
    if members:
        (train_with or train_stacked)(local_model, members, training, seed=seed, on_step=on_step)
    for member in members:
        found[member.asked.client] = _answer(member, local_model, training, seed, declares_loss)
    yield from ((one.client, found[one.client]) for one in asked)


def begin_all(
    asked: Sequence[Asked],
    local_model: LocalModel,
    training: LocalTraining,
    seed: int,
    failed: dict[int, bytes | Exception],
) -> list[Member]:
    """Those whose broadcast could be opened, the others into `failed`. The model has the largest rank."""
    members: list[Member] = []
    for one in asked:
        try:
            begun = begin_update(
                one.broadcast, local_model, one.examples, seed=seed, part=one.part, kept=one.kept
            )
        except (ClientFailed, UpdateRejected) as reason:
            failed[one.client] = reason
            continue
        batches = batches_of_round(
            one.examples, training, round_number=begun.header.round, client=one.client, seed=seed
        )
        members.append(Member(one, begun, len(members), copied(begun.parameters), batches))
    largest = max(members, key=lambda member: member.asked.part.rank, default=None)
    if largest is not None and largest.asked.part.rank != local_model.rank:
        _load(largest, local_model, seed)
    return members


def _load(member: Member, local_model: LocalModel, seed: int) -> None:
    """A client's round into the model once more, at its rank."""
    begun, asked = member.begun, member.asked
    begun.parameters = load_round(
        local_model, begun.shared, asked.part, round_number=begun.header.round, seed=seed, kept=asked.kept
    )


def _answer(
    member: Member, local_model: LocalModel, training: LocalTraining, seed: int, declares_loss: bool
) -> bytes | Exception:
    if member.failure is not None:
        return member.failure
    asked = member.asked
    if asked.part.rank != local_model.rank:
        _load(member, local_model, seed)
    else:
        member.begun.parameters = trained_parameters(local_model, member.begun.header.round)
    with torch.no_grad():
        for name, parameter in member.begun.parameters.items():
            parameter.copy_(member.parameters[name])
    try:
        return finish_update(
            member.begun,
            local_model,
            training,
            member.mean_loss if declares_loss else None,
            client=asked.client,
            seed=seed,
            num_examples=len(asked.examples),
            registered=asked.registered,
            kept=asked.kept,
        )
    except ClientFailed as reason:
        return reason


# ---------------------------------------------------------------- training


def train_stacked(
    local_model: LocalModel,
    members: Sequence[Member],
    training: LocalTraining,
    *,
    seed: int,
    on_step: OnStep = lambda num_examples: None,
) -> None:
    """Train the members' parameters; each has its losses, or why it failed, afterwards.

    Dropout's randomness depends on (seed, round, clients of the stack) alone.
    """
    clients, round_number = [member.asked.client for member in members], members[0].begun.header.round
    with stacked(local_model, members) as (leaves, passing):
        trainers = [_Trainer.of(local_model, member, training) for member in members]
        local_model.model.train()
        with scoped_global_seed(seed, "dropout", round_number, *clients):
            for step in range(max(trainer.steps for trainer in trainers)):
                active = [t for t in trainers if step < t.steps and t.member.failure is None]
                _step(local_model, leaves, passing, active, training, step, on_step)
        for trainer in trainers:
            if trainer.moments is not None and trainer.member.failure is None:
                trainer.moments.take(trainer.optimizer, trainer.member.parameters)


@contextmanager
def stacked(
    local_model: LocalModel, members: Sequence[Member]
) -> Iterator[tuple[dict[str, nn.Parameter], Passing]]:
    """Inside the block the model computes each row with its client's parameters: those of the whole stack, by
    name, and what must be told whose rows pass."""
    leaves, passing = _leaves(members), Passing()
    with in_place_of(local_model.model, _modules(local_model, leaves, passing)):
        yield leaves, passing


def _leaves(members: Sequence[Member]) -> dict[str, nn.Parameter]:
    """All members' parameters, zero where one holds nothing; each member gets its views."""
    leaves = {}
    for name, first in members[0].values.items():
        shapes = [member.values[name].shape for member in members]
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        whole = first.new_zeros((len(members), *largest))
        leaves[name] = nn.Parameter(whole)
        for member in members:
            view = slice_of(whole, member, name)
            view.copy_(member.values[name])
            member.parameters[name] = nn.Parameter(view)
    return leaves


def slice_of(whole: Tensor, member: Member, name: str) -> Tensor:
    """A member's part of a parameter of the stack."""
    own: tuple[int | slice, ...] = (member.place, *map(slice, member.values[name].shape))
    return whole[own]


def _modules(
    local_model: LocalModel, leaves: Mapping[str, nn.Parameter], passing: Passing
) -> dict[str, nn.Module]:
    """What goes in the place of each module that has parameters of the stack, by its name."""
    layers, own = local_model.attached.layers, dict[str, dict[str, Tensor]]()
    for name, leaf in leaves.items():
        owner, _, inner = name.rpartition(".")
        own.setdefault(owner, {})[inner] = leaf
    return {
        name: StackedLinear(layers[name], of, passing)
        if name in layers
        else StackedModule(local_model.model.get_submodule(name), of, passing)
        for name, of in own.items()
    }


@dataclass
class _Trainer:
    """What trains one member beside its gradients, as it would be alone."""

    member: Member
    optimizer: torch.optim.Optimizer
    pull: Pull
    moments: Moments | None
    steps: int

    @staticmethod
    def of(local_model: LocalModel, member: Member, training: LocalTraining) -> _Trainer:
        parameters, number = member.parameters, member.begun.header.round
        more, steps = member.begun.for_training(parameters), -(-len(member.batches) // training.accumulation)
        groups = parameter_groups(parameters, local_model.exchange.stays(number), training)
        optimizer, moments = make_optimizer(groups, training), more.get("moments")
        if moments is not None:
            moments.put(optimizer, parameters, steps)
        pull = Pull.of(local_model, parameters, training, number, more.get("shift", {}))
        return _Trainer(member, optimizer, pull, moments, steps)

    def take_step(self, local_model: LocalModel, total: float, training: LocalTraining, step: int) -> None:
        """One step of gradients that are there, over losses that add up to `total`."""
        member = self.member
        done = (member.begun.header.round - 1) * self.steps
        set_learning_rate(self.optimizer, done + step, training.rounds * self.steps, training)
        for name, mask in member.begun.masks.items():
            if (gradient := member.parameters[name].grad) is not None:
                gradient.mul_(mask)
        filter_ = partial(filter_gradients, local_model, member.parameters, step)
        try:
            take_step(member.parameters, self.optimizer, total, training, partial(self.pull.finish, filter_))
        except ClientFailed as failure:
            member.failure = failure
        member.loss_sum += total


def _step(
    local_model: LocalModel,
    leaves: Mapping[str, nn.Parameter],
    passing: Passing,
    active: Sequence[_Trainer],
    training: LocalTraining,
    step: int,
    on_step: OnStep,
) -> None:
    """One optimizer step of each of these."""
    first = step * training.accumulation
    numbers = range(first, first + training.accumulation)
    seen = {
        t.member.place: sum(len(b) for b in t.member.batches[first : first + len(numbers)]) for t in active
    }
    totals = dict.fromkeys(seen, 0.0)
    with resting(local_model, leaves, step):
        for number in numbers:
            having = [t.member for t in active if number < len(t.member.batches)]
            for place, total in add_gradients(local_model, having, passing, training, number, seen).items():
                totals[place] += total
    for trainer in active:
        give_gradients(leaves, trainer.member)
        trainer.take_step(local_model, totals[trainer.member.place], training, step)
        on_step(seen[trainer.member.place])
    for leaf in leaves.values():
        leaf.grad = None


def give_gradients(leaves: Mapping[str, nn.Parameter], member: Member) -> None:
    """To a member's parameters those of its slice."""
    for name, leaf in leaves.items():
        gradient = leaf.grad
        member.parameters[name].grad = None if gradient is None else slice_of(gradient, member, name)


def add_gradients(
    local_model: LocalModel,
    members: Sequence[Member],
    passing: Passing,
    training: LocalTraining,
    number: int,
    seen: Mapping[int, int],
    cost: PassCost | None = None,
) -> dict[int, float]:
    """Add the gradients of one batch of each member's; the sums of their losses, by place.

    seen: by place, the examples that a member's step has in all. cost: of passes; None: the device's.
    """
    cost = cost or pass_cost(local_model.device)
    batches = [member.batch(number) for member in members]
    sizes = [(len(batch), max(1, *map(length_of, batch))) for batch in batches]
    totals: dict[int, float] = {}
    for together in passes(sizes, cost):
        rows = max(sizes[i][0] for i in together)
        filled = [example for i in together for example in _filled(batches[i], rows)]
        real = torch.tensor([[row < sizes[i][0] for row in range(rows)] for i in together])
        shares = torch.tensor([1 / seen[members[i].place] for i in together])
        weights = (real * shares[:, None]).to(local_model.device)
        passing.tell([members[i].place for i in together], len(filled))
        batch = to_device(local_model.collate(filled), local_model.device)
        with autocast(training, local_model.device):
            losses = local_model.losses(local_model.model, batch).unflatten(0, (len(together), rows))
            loss = (losses * weights).sum()
        loss.backward()
        sums = torch.where(weights > 0, losses.detach(), 0.0).sum(1).tolist()
        totals |= dict(zip(passing.places, sums, strict=True))
    return totals


def _filled(batch: Sequence[Example], rows: int) -> list[Example]:
    """The batch with as many rows, the first repeated."""
    return [*batch, *[batch[0]] * (rows - len(batch))]


def pass_cost(device: torch.device) -> PassCost:
    """What passes cost there."""
    return ON_CPU if device.type == "cpu" else ELSEWHERE


def passes(sizes: Sequence[tuple[int, int]], cost: PassCost) -> list[list[int]]:
    """Indices of the batches, of (rows, tokens), that pass together: the least cost with what fills them up.

    >>> passes([(1, 10), (1, 200), (1, 12)], PassCost(apart=32, most=1024))
    [[1], [0, 2]]
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i][1])
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first so many, and where their last pass begins
    for end in range(1, len(order) + 1):
        rows, options = 0, list[tuple[int, int]]()
        for start in reversed(range(end)):
            rows = max(rows, sizes[order[start]][0])
            tokens = (end - start) * rows * sizes[order[start]][1]
            if options and tokens > cost.most:
                break
            options.append((best[start][0] + cost.apart + tokens, start))
        best.append(min(options))
    found, end = list[list[int]](), len(order)
    while end:
        start = best[end][1]
        found.append(sorted(order[start:end]))
        end = start
    return found[::-1]
