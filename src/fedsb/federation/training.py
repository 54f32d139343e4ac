"""Local training: batches, the optimizer, learning rates over the whole run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsb.common.seeding import numpy_generator, scoped_global_seed
from fedsb.federation.local_model import Batch, Example, LocalModel
from fedsb.federation.moments import Moments
from fedsb.tasks.task import length_of

Schedule = Literal["constant", "linear", "cosine"]
OnStep = Callable[[int], None]
Train = Callable[..., float | None]
"""A trainer with the arguments of `train`."""
LENGTH_GROUP = 16
"""Batches that are sorted together where examples are grouped by length."""


def learning_rate_factor(
    step: int, total_steps: int, *, schedule: Schedule, warmup_ratio: float = 0.0
) -> float:
    """Factor in (0, 1] of the learning rate at `step` (from 0) of the whole run's `total_steps`.

    Rises linearly over the first `warmup_ratio` of the steps, then stays, falls linearly to zero, or
    follows half a cosine. The first step's factor is above zero.

    >>> [round(learning_rate_factor(s, 4, schedule="linear", warmup_ratio=0.5), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = warmup_ratio * total_steps
    if step + 1 <= warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = max(0.0, step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class ClientFailed(Exception):
    """Local training could not finish; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a client trains. Fields as in the config's `training` section, plus the two of the run."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.0
    learning_rate: float = 1e-3
    epochs: float = 1.0
    batch_size: int = 32
    accumulation: int = 1
    max_length: int = 128
    schedule: Schedule = "constant"
    warmup_ratio: float = 0.0
    personal_rate: float = 1.0
    weight_decay: float = 0.0
    grad_clip: float | None = None
    autocast: Literal["bfloat16"] | None = None
    group_by_length: bool = False
    rounds: int = 1
    """Rounds of the whole run, for the schedule."""
    timeout_seconds: float | None = None
    proximal: float = 0.0
    """mu of FedProx."""

    def batches_per_round(self, num_examples: int) -> int:
        """Batches of one round's local training."""
        return max(1, math.ceil(self.epochs * math.ceil(num_examples / self.batch_size) - 1e-9))

    def steps_per_round(self, num_examples: int) -> int:
        """Optimizer steps of one round's local training."""
        return math.ceil(self.batches_per_round(num_examples) / self.accumulation)

    def rates(self, round_number: int, num_examples: int) -> float:
        """The sum of the rates of one round's steps of a client with so many examples."""
        steps = self.steps_per_round(num_examples)
        first, total = (round_number - 1) * steps, self.rounds * steps
        return sum(self.learning_rate_at(step, total) for step in range(first, first + steps))

    def learning_rate_at(self, step: int, total: int) -> float:
        """The rate of this optimizer step, from 0, of the whole run's `total`."""
        factor = learning_rate_factor(step, total, schedule=self.schedule, warmup_ratio=self.warmup_ratio)
        return self.learning_rate * factor


@contextmanager
def _masked(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, gradients are zero where the masks are."""
    with ExitStack() as hooks:
        for name, mask in masks.items():
            hooks.enter_context(parameters[name].register_hook(mask.mul))
        yield


def train(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    training: LocalTraining,
    *,
    masks: Mapping[str, Tensor] | None = None,
    round_number: int,
    client: int,
    seed: int,
    on_step: OnStep = lambda num_examples: None,
    shift: Mapping[str, Tensor] = MappingProxyType({}),
    moments: Moments | None = None,
) -> float:
    """Train the parameters in place; the mean loss over the examples seen. `masks` as `_masked` takes them.

    shift: what is added to each step's gradient, by parameter. moments: what AdamW starts from, and leaves.

    Randomness depends on (seed, round, client) alone: the batches' order by its own generator, dropout
    by torch's global one, seeded for this call and put back.
    """
    deadline = None if training.timeout_seconds is None else time.monotonic() + training.timeout_seconds
    batches = batches_of_round(examples, training, round_number=round_number, client=client, seed=seed)
    steps = [batches[i : i + training.accumulation] for i in range(0, len(batches), training.accumulation)]
    optimizer = make_optimizer(
        parameter_groups(parameters, local_model.exchange.stays(round_number), training), training
    )
    if moments is not None:
        moments.put(optimizer, parameters, len(steps))
    loss_sum = seen = 0.0
    pulled = Pull.of(local_model, parameters, training, round_number, shift)
    local_model.model.train()
    with scoped_global_seed(seed, "dropout", round_number, client), _masked(parameters, masks or {}):
        for number, group in enumerate(steps, start=(round_number - 1) * len(steps)):
            set_learning_rate(optimizer, number, training.rounds * len(steps), training)
            chosen = [[examples[i] for i in batch] for batch in group]
            step = number - (round_number - 1) * len(steps)
            with resting(local_model, parameters, step) as filter_:
                finish = partial(pulled.finish, filter_)
                loss_sum += plain_step(local_model, parameters, optimizer, chosen, training, finish)
            seen += sum(map(len, group))
            on_step(sum(map(len, group)))
            if deadline is not None and time.monotonic() > deadline:
                raise ClientFailed(f"timed out after {training.timeout_seconds:g} s")
    if moments is not None:
        moments.take(optimizer, parameters)
    return loss_sum / seen


def batches_of_round(
    examples: Sequence[Example], training: LocalTraining, *, round_number: int, client: int, seed: int
) -> list[list[int]]:
    """The batches of one client's round in their order, as indices of its examples."""
    rng = numpy_generator(seed, "batches", round_number, client)
    return list(batch_indices([length_of(e) for e in examples], training, rng))


def batch_indices(
    lengths: Sequence[int], training: LocalTraining, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Index batches of one round's local training: a new permutation per epoch.

    With `group_by_length`, runs of LENGTH_GROUP batches are sorted by length, cut and shuffled again: less
    padding, nearly the same randomness.
    """
    missing = training.batches_per_round(len(lengths)) if lengths else 0
    while missing > 0:
        epoch = list(_epoch_batches(lengths, training, rng))[:missing]
        missing -= len(epoch)
        yield from epoch


def _epoch_batches(
    lengths: Sequence[int], training: LocalTraining, rng: np.random.Generator
) -> Iterator[list[int]]:
    size, order = training.batch_size, rng.permutation(len(lengths)).tolist()
    if not training.group_by_length:
        yield from (order[i : i + size] for i in range(0, len(order), size))
        return
    for start in range(0, len(order), LENGTH_GROUP * size):
        group = sorted(order[start : start + LENGTH_GROUP * size], key=lambda i: lengths[i])
        batches = [group[i : i + size] for i in range(0, len(group), size)]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], stays: Sequence[str], training: LocalTraining
) -> list[dict[str, Any]]:
    """What is shared, and what stays with the client at a rate of its own."""
    shared = [p for name, p in parameters.items() if name not in stays]
    own = [p for name, p in parameters.items() if name in stays]
    rates = ((shared, 1.0), (own, training.personal_rate))
    return [{"params": of, "share": share} for of, share in rates if of]


def make_optimizer(parameters: Any, training: LocalTraining) -> torch.optim.Optimizer:
    """AdamW or SGD over these parameters."""
    rate, decay, parameters = training.learning_rate, training.weight_decay, list(parameters)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, foreach=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=decay, foreach=True)


def plain_step(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    group: Sequence[Sequence[Example]],
    training: LocalTraining,
    finish_gradients: Callable[[], None] = lambda: None,
) -> float:
    """One optimizer step over a group of batches; the sum of the examples' losses.

    finish_gradients: what is done with the gradients, clipped before, as they go to the optimizer.
    """
    optimizer.zero_grad(set_to_none=True)
    num_examples = sum(map(len, group))
    total = 0.0
    for batch_examples in group:
        batch = to_device(local_model.collate(batch_examples), local_model.device)
        with autocast(training, local_model.device):
            loss = local_model.losses(local_model.model, batch).sum() / num_examples
        loss.backward()
        total += loss.item() * num_examples
    take_step(parameters, optimizer, total, training, finish_gradients)
    return total


def take_step(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    total: float,
    training: LocalTraining,
    finish_gradients: Callable[[], None] = lambda: None,
) -> None:
    """The step itself, of gradients that are there; `total`: the sum of the losses that they are of.

    Raises:
        ClientFailed: that is not finite.
    """
    if not math.isfinite(total):
        raise ClientFailed(
            f"the loss is not finite ({total}); lower training.learning_rate or set training.grad_clip"
        )
    if training.grad_clip is not None:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), training.grad_clip)
    finish_gradients()
    optimizer.step()


@dataclass(frozen=True)
class Pull:
    """What joins each gradient beside the loss's own: of FedProx, and of control variates.

    Attributes:
        anchors: what a round's trained numbers began from, by parameter, where they are drawn back to it.
        proximal: by how much.
        shift: what is added as it is, by parameter.
    """

    parameters: Mapping[str, nn.Parameter]
    anchors: Mapping[str, Tensor]
    proximal: float
    shift: Mapping[str, Tensor]

    @staticmethod
    def of(
        local_model: LocalModel,
        parameters: Mapping[str, nn.Parameter],
        training: LocalTraining,
        round_number: int,
        shift: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Pull:
        """As a round begins. What stays with a client is drawn nowhere."""
        own = set(local_model.exchange.stays(round_number)) if training.proximal else parameters.keys()
        anchors = {n: p.detach().clone() for n, p in parameters.items() if n not in own}
        return Pull(parameters, anchors, training.proximal, shift)

    def finish(self, filter_: Callable[[], None]) -> None:
        """Put the gradients through the method's filter, and add what joins them."""
        filter_()
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            if name in self.anchors:
                parameter.grad.add_(parameter.detach() - self.anchors[name], alpha=self.proximal)
            if name in self.shift:
                parameter.grad.add_(self.shift[name])


@contextmanager
def resting(
    local_model: LocalModel, parameters: Mapping[str, nn.Parameter], step: int
) -> Iterator[Callable[[], None]]:
    """Inside the block, what does not train in this step of the round asks for no gradient; what is given
    puts the gradients through the method's filter."""
    active = local_model.exchange.in_step(parameters, step)
    head = local_model.exchange.task_head
    rests = [p for name, p in parameters.items() if name not in active and name not in head]
    try:
        for parameter in rests:
            parameter.requires_grad_(False)
        yield partial(filter_gradients, local_model, parameters, step)
    finally:
        for parameter in rests:
            parameter.requires_grad_(True)


def filter_gradients(local_model: LocalModel, parameters: Mapping[str, nn.Parameter], step: int) -> None:
    """Put the gradients of what trains in this step of the round through the method's filter."""
    rule = local_model.exchange.method.filter_gradient
    if rule is None:
        return
    for name, factor in local_model.exchange.in_step(parameters, step).items():
        if (gradient := parameters[name].grad) is not None:
            gradient.copy_(rule(factor, gradient))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on the device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def autocast(training: LocalTraining, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where the config asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if training.autocast else nullcontext()


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, total: int, training: LocalTraining
) -> None:
    """Give the optimizer the schedule's rate at this step of the whole run."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("share", 1.0) * training.learning_rate_at(step, total)
