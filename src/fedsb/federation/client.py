"""Local training: a broadcast in, an update out. The same function serves simulation and deployment.

Data flow: bytes -> vector -> factors of the client's part -> optimizer steps on its examples -> vector ->
bytes.
Between rounds a client keeps what was sent once and, for methods that change them, its base weights:
optimizer state starts anew each round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsb.adapter import FACTOR_NAMES
from fedsb.common.seeding import numpy_generator, scoped_global_seed
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange, Part
from fedsb.federation.local_model import Batch, Example, Trainable, place, take_base
from fedsb.federation.schedule import Schedule, learning_rate_factor

OnStep = Callable[[int], None]
Train = Callable[..., float | None]
"""A trainer with the arguments of `train`."""

LENGTH_GROUP = 16
"""Batches that are sorted together where examples are grouped by length."""


class ClientFailed(Exception):
    """Local training could not finish; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a client trains. Fields as in the config's `training` section, plus the two of the run."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    epochs: float = 1.0
    batch_size: int = 32
    accumulation: int = 1
    max_length: int = 128
    schedule: Schedule = "constant"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    grad_clip: float | None = None
    autocast: Literal["bfloat16"] | None = None
    group_by_length: bool = False
    rounds: int = 1
    """Rounds of the whole run, for the schedule."""
    timeout_seconds: float | None = None

    def batches_per_round(self, num_examples: int) -> int:
        """Batches of one round's local training."""
        return max(1, math.ceil(self.epochs * math.ceil(num_examples / self.batch_size) - 1e-9))

    def steps_per_round(self, num_examples: int) -> int:
        """Optimizer steps of one round's local training."""
        return math.ceil(self.batches_per_round(num_examples) / self.accumulation)

    def first_learning_rate(self, num_examples: int) -> float:
        """The rate of the very first optimizer step of the run."""
        total = self.rounds * self.steps_per_round(num_examples)
        factor = learning_rate_factor(0, total, schedule=self.schedule, warmup_ratio=self.warmup_ratio)
        return self.learning_rate * factor


def client_update(
    broadcast: bytes,
    trainable: Trainable,
    examples: Sequence[Example],
    training: LocalTraining,
    *,
    client: int,
    seed: int,
    part: Part | None = None,
    registered: int | None = None,
    on_step: OnStep = lambda num_examples: None,
    train_with: Train | None = None,
) -> bytes:
    """One client's part of one round.

    Args:
        registered: the count of examples that the answer declares; None: of these.
        train_with: what trains in place of `train`; if it returns None, no loss is declared.

    Raises:
        UpdateRejected: the broadcast is no message for this part of this method.
        ClientFailed: the loss is not finite, the time is up, or a number is too large for its upload.
    """
    header, vector = wire.unpack(broadcast)
    if not examples:
        raise ClientFailed("it holds no examples")
    exchange, part = trainable.exchange, part or trainable.exchange.whole
    layout = exchange.message(part.rank, header.base)
    expected = wire.Header(exchange.method.name, header.round, layout.digest)
    wire.check(header, vector, expected=expected, size=layout.size)
    down = exchange.down(part.rank)
    take_base(trainable, header, vector[down.size :])
    shared = down.unflatten(vector[: down.size])
    parameters = place(trainable, shared, part, round_number=header.round, seed=seed)
    mean_loss = (train_with or train)(
        trainable,
        parameters,
        examples,
        training,
        masks=_masks(exchange, parameters, part),
        round_number=header.round,
        client=client,
        seed=seed,
        on_step=on_step,
    )
    layout = exchange.up(header.round, part)
    count = len(examples) if registered is None else registered
    answer = wire.Header(
        header.method, header.round, layout.digest, client, num_examples=count, train_loss=mean_loss
    )
    vector = layout.flatten(_answer(exchange, parameters, part))
    try:
        return wire.pack(answer, vector, exchange.upload_dtype)
    except wire.Overflow as reason:
        raise ClientFailed(str(reason)) from None


def _answer(exchange: Exchange, parameters: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """What goes up: trained factors as the method settles them (of heads that trained), and the task head."""
    answer = {name: parameters[name].detach() for name in exchange.head}
    for layer in exchange.layers:
        factors = {f: p.detach() for f in FACTOR_NAMES if (p := parameters.get(f"{layer}.{f}")) is not None}
        settled = exchange.method.settle(factors) if exchange.method.settle else factors
        for name, value in settled.items():
            answer[f"{layer}.{name}"] = value if part.heads is None else value[list(part.heads)]
    return answer


def _masks(exchange: Exchange, parameters: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """By parameter, 1 for the heads of the core that train and 0 for the others; empty if all do."""
    masks = {}
    for name, parameter in parameters.items():
        if part.heads is not None and name not in exchange.head:
            masks[name] = torch.zeros(len(parameter), *[1] * (parameter.dim() - 1), device=parameter.device)
            masks[name][list(part.heads)] = 1.0
    return masks


@contextmanager
def _masked(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, gradients are zero where the masks are."""
    handles = [parameters[n].register_hook(lambda g, mask=mask: g * mask) for n, mask in masks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train(
    trainable: Trainable,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    training: LocalTraining,
    *,
    masks: Mapping[str, Tensor] | None = None,
    round_number: int,
    client: int,
    seed: int,
    on_step: OnStep = lambda num_examples: None,
) -> float:
    """Train the parameters in place; the mean loss over the examples seen. `masks` as `_masked` takes them.

    Randomness depends on (seed, round, client) alone: the batches' order by its own generator, dropout
    by torch's global one, seeded for this call and put back.
    """
    deadline = None if training.timeout_seconds is None else time.monotonic() + training.timeout_seconds
    rng = numpy_generator(seed, "batches", round_number, client)
    batches = list(batch_indices([len(e["input_ids"]) for e in examples], training, rng))
    steps = [batches[i : i + training.accumulation] for i in range(0, len(batches), training.accumulation)]
    optimizer = make_optimizer(parameters.values(), training)
    loss_sum = seen = 0.0
    trainable.model.train()
    with scoped_global_seed(seed, "dropout", round_number, client), _masked(parameters, masks or {}):
        for number, group in enumerate(steps, start=(round_number - 1) * len(steps)):
            set_learning_rate(optimizer, number, training.rounds * len(steps), training)
            chosen = [[examples[i] for i in batch] for batch in group]
            loss_sum += plain_step(trainable, parameters, optimizer, chosen, training)
            seen += sum(map(len, group))
            on_step(sum(map(len, group)))
            if deadline is not None and time.monotonic() > deadline:
                raise ClientFailed(f"timed out after {training.timeout_seconds:g} s")
    return loss_sum / seen


def batch_indices(
    lengths: Sequence[int], training: LocalTraining, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Index batches of one round's local training: a new permutation per epoch.

    With `group_by_length`, runs of LENGTH_GROUP batches are sorted by length, cut and shuffled again: less
    padding, nearly the same randomness.
    """
    wanted = training.batches_per_round(len(lengths)) if lengths else 0
    while wanted > 0:
        epoch = list(_epoch_batches(lengths, training, rng))[:wanted]
        wanted -= len(epoch)
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


def make_optimizer(parameters: Any, training: LocalTraining) -> torch.optim.Optimizer:
    """AdamW or SGD over these parameters."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters), lr=rate, weight_decay=decay, foreach=True)
    return torch.optim.SGD(list(parameters), lr=rate, weight_decay=decay, foreach=True)


def plain_step(
    trainable: Trainable,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    group: Sequence[Sequence[Example]],
    training: LocalTraining,
) -> float:
    """One optimizer step over a group of batches; the sum of the examples' losses."""
    optimizer.zero_grad(set_to_none=True)
    num_examples = sum(map(len, group))
    total = 0.0
    for batch_examples in group:
        batch = to_device(trainable.collate(batch_examples), trainable.device)
        with autocast(training, trainable.device):
            loss = trainable.losses(trainable.model, batch).sum() / num_examples
        loss.backward()
        total += loss.item() * num_examples
    if not math.isfinite(total):
        raise ClientFailed(
            f"the loss is not finite ({total}); lower training.learning_rate or set training.grad_clip"
        )
    if training.grad_clip is not None:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), training.grad_clip)
    optimizer.step()
    return total


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on the device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def autocast(training: LocalTraining, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where the config wants it."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if training.autocast else nullcontext()


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, total: int, training: LocalTraining
) -> None:
    """The schedule's rate at this step of the whole run."""
    factor = learning_rate_factor(step, total, schedule=training.schedule, warmup_ratio=training.warmup_ratio)
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate * factor
