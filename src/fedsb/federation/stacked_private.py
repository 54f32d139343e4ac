"""Clients under example-level DP, trained in one pass: each with its own Poisson batches, plan and noise.

    each step    each client's Poisson batch -> physical batches -> passes of several clients' examples,
                 each with a copy of its client's parameters -> one gradient for each example
    each client  clipped, summed, noised, the optimizer's step: as alone (`private_training`)

A row has a copy of what trains, so what it does to any gradient is in its own, which is clipped. For fp32
alone: 16-bit numbers are rounded by the shape of a batch, which other clients' examples would move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.adapter.stacked import Passing
from fedsb.federation.dropout import check_repeatable, without_dropout
from fedsb.federation.local_model import Example, LocalModel
from fedsb.federation.moments import Moments
from fedsb.federation.private_training import clipping_optimizer, physical_batches, private_step
from fedsb.federation.stacked import Member, pass_cost, passes, slice_of, stacked
from fedsb.federation.training import (
    LocalTraining,
    OnStep,
    Pull,
    filter_gradients,
    resting,
    set_learning_rate,
    to_device,
)
from fedsb.privacy.correlated import Correlated
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan
from fedsb.tasks.task import length_of


@dataclass(frozen=True)
class PrivateWay:
    """How one client trains privately; fields as of `train_privately`. No owners, no canaries."""

    plan: ExamplePlan
    noise: NoiseSource
    coins: Keystream
    correlated: Correlated | None = None


Gradients = dict[str, Tensor]
"""Of each parameter, one for each example."""


def train_stacked_privately(
    local_model: LocalModel,
    members: Sequence[Member],
    training: LocalTraining,
    *,
    ways: Mapping[int, PrivateWay],
    seed: int = 0,
    on_step: OnStep = lambda num_examples: None,
) -> None:
    """Train the members' parameters by their plans' steps of one round, each as `train_privately` would.

    Args:
        ways: by client.
        seed: plays no part: whoever sees the results may know it.

    Raises:
        RunFailed: the model drops or draws something by itself.
    """
    with without_dropout(local_model.model):
        pair = members[0].asked.examples[:2]
        check_repeatable(local_model.model, lambda: _losses(local_model, pair))
    with stacked(local_model, members) as (leaves, passing), without_dropout(local_model.model):
        trainers = [_Trainer.of(local_model, m, ways[m.asked.client], training) for m in members]
        for step in range(max(len(trainer.batches) for trainer in trainers)):
            active = [trainer for trainer in trainers if step < len(trainer.batches)]
            with resting(local_model, leaves, step):
                found = _gradients_of_step(local_model, leaves, passing, active, training, step)
            for trainer, gradients in zip(active, found, strict=True):
                trainer.take_step(local_model, gradients, training, step)
                on_step(trainer.plan.expected_batch_size)
        for trainer in trainers:
            if trainer.moments is not None:
                trainer.moments.take(trainer.optimizer.original_optimizer, trainer.member.parameters)


@dataclass
class _Trainer:
    """What trains one member beside its gradients.

    Attributes:
        batches: the indices of each step's Poisson batch.
    """

    member: Member
    plan: ExamplePlan
    optimizer: Any
    pull: Pull
    moments: Moments | None
    batches: list[list[int]]

    @staticmethod
    def of(local_model: LocalModel, member: Member, way: PrivateWay, training: LocalTraining) -> _Trainer:
        parameters, number, plan = member.parameters, member.begun.header.round, way.plan
        path = ("step", member.asked.client, number)
        optimizer = clipping_optimizer(parameters, training, plan, way.noise, path, way.correlated)
        moments = member.begun.for_training(parameters).get("moments")
        if moments is not None:
            moments.put(optimizer.original_optimizer, parameters, plan.steps_per_round)
        pull = Pull.of(local_model, parameters, training, number)
        batches = [list(batch) for batch in plan.batches(way.coins, number)]
        return _Trainer(member, plan, optimizer, pull, moments, batches)

    def physical(self, step: int, training: LocalTraining) -> list[list[Example]]:
        """The step's examples in physical batches."""
        chosen = [self.member.asked.examples[i] for i in self.batches[step]]
        return physical_batches(chosen, training.batch_size, length_of)

    def take_step(
        self, local_model: LocalModel, gradients: Sequence[Gradients], training: LocalTraining, step: int
    ) -> None:
        """Clip, sum and noise the gradients of each physical batch, and step."""
        parameters, masks, steps = self.member.parameters, self.member.begun.masks, self.plan.steps_per_round
        first = (self.member.begun.header.round - 1) * steps
        set_learning_rate(self.optimizer, first + step, training.rounds * steps, training)
        with resting(local_model, parameters, step):
            trained = {name: p for name, p in parameters.items() if p.requires_grad}
            filter_ = partial(filter_gradients, local_model, parameters, step)
            joining: list[Callable[[], Gradients]] = [partial(_usable, g, masks, trained) for g in gradients]
            hooks = (partial(self.pull.finish, filter_),)
            private_step(
                local_model, trained, self.optimizer, [], training, masks, joining=joining, hooks=hooks
            )


def _usable(
    gradients: Gradients, masks: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]
) -> Gradients:
    """Those of what trains, in fp32, masked; what is not finite in them counts as zero."""
    found = {}
    for name in trained:
        sample = gradients[name].float()
        sample = sample * masks[name] if name in masks else sample
        found[name] = torch.where(torch.isfinite(sample), sample, 0.0)
    return found


def _gradients_of_step(
    local_model: LocalModel,
    leaves: Mapping[str, nn.Parameter],
    passing: Passing,
    trainers: Sequence[_Trainer],
    training: LocalTraining,
    step: int,
) -> list[list[Gradients]]:
    """Of each trainer's physical batches of this step that are not empty, the gradients of their examples."""
    found: list[list[Gradients]] = [[] for _ in trainers]
    physical = [trainer.physical(step, training) for trainer in trainers]
    for number in range(max(map(len, physical))):
        having = [i for i, of in enumerate(physical) if number < len(of) and of[number]]
        batches = [physical[i][number] for i in having]
        sizes = [(len(batch), max(1, *map(length_of, batch))) for batch in batches]
        for together in passes(sizes, pass_cost(local_model.device)):
            places = [trainers[having[k]].member for k in together]
            parts = _gradients(local_model, leaves, passing, places, [batches[k] for k in together])
            for k, part in zip(together, parts, strict=True):
                found[having[k]].append(part)
    return found


def _gradients(
    local_model: LocalModel,
    leaves: Mapping[str, nn.Parameter],
    passing: Passing,
    members: Sequence[Member],
    batches: Sequence[Sequence[Example]],
) -> list[Gradients]:
    """Of each member, its examples' gradients, from one pass of all."""
    examples = [example for batch in batches for example in batch]
    places = [m.place for m, batch in zip(members, batches, strict=True) for _ in batch]
    passing.tell(places, len(examples), own_gradients=True)
    _losses(local_model, examples).sum().backward()
    copies = passing.copies or {}
    found, start = list[Gradients](), 0
    for member, batch in zip(members, batches, strict=True):
        rows, start = slice(start, start + len(batch)), start + len(batch)
        found.append(
            {name: _of_rows(copies.get(id(leaf)), leaf, member, name, rows) for name, leaf in leaves.items()}
        )
    return found


def _of_rows(copy: Tensor | None, leaf: Tensor, member: Member, name: str, rows: slice) -> Tensor:
    """A member's part of the gradients of these rows; zero where none came back."""
    own = slice_of(leaf, member, name)
    if copy is None or copy.grad is None:
        return own.new_zeros((rows.stop - rows.start, *own.shape))
    return copy.grad[(rows, *map(slice, own.shape))]


def _losses(local_model: LocalModel, examples: Sequence[Example]) -> Tensor:
    batch = to_device(local_model.collate(examples), local_model.device)
    return local_model.losses(local_model.model, batch)
