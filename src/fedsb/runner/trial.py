"""All that a run does to its model, once on two of its rows, before anything expensive starts.

What a library would raise in the middle of the run it raises here, and the config key says what to change.
The model, its head and the global generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach, detach
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import estimate_update
from fedsb.common.seeding import scoped_global_seed
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.errors import InputError, RunFailed
from fedsb.federation.local_model import Batch, Example
from fedsb.federation.start.from_gradients import estimating
from fedsb.federation.start.head_warmup import cache_base_outputs, train_head
from fedsb.federation.start.settings import Warmup
from fedsb.federation.training import autocast, to_device
from fedsb.report.units import plural
from fedsb.runner.arguments import local_training
from fedsb.runner.prepare_data import Data
from fedsb.runner.prepare_model import BaseModel
from fedsb.tasks.generate import generate_texts
from fedsb.tasks.task import evaluating, token_ids

ROWS_TO_BE_SURE = 32
"""Rows that are asked before a layer is said to get no gradient: an expert may see none of two rows."""


def try_rows(config: RunConfig, data: Data, base: BaseModel) -> int:
    """Evaluate, start and train on two rows; how many rows there were to try.

    Raises:
        InputError: the model cannot do one of these; the message names the key to change.
    """
    examples = two_rows(data.train or data.test)
    if examples and base.device.type != "meta":
        with _as_before(base.model, config.seed):
            _evaluate(config, data, base, examples)
            _warm_up(config, data, base, examples)
            reaching = _step(config, data, base, examples)
            _estimate(config, data, base, reaching)
    return len(examples)


def two_rows(examples: Sequence[Example]) -> list[Example]:
    """The longest example and the one with the largest token id, or another where that is the same."""
    if len(examples) < 2:
        return list(examples)
    ids = [token_ids(example) for example in examples]
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    rest = [i for i in range(len(ids)) if i != longest]
    return [examples[longest], examples[max(rest, key=lambda i: max(ids[i], default=0))]]


@contextmanager
def _as_before(model: nn.Module, seed: int) -> Iterator[None]:
    """Modes, buffers and global generators are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        with scoped_global_seed(seed, "trial"):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, buffer, value in buffers:
            buffer.copy_(value)
            setattr(module, name, buffer)  # code that moves its buffers puts others in their place


def _batch(data: Data, base: BaseModel, examples: Sequence[Example]) -> Batch:
    return to_device(data.task.collate(examples), base.device)


def _evaluate(config: RunConfig, data: Data, base: BaseModel, examples: Sequence[Example]) -> None:
    """The loss of each row alone, and a token or two of an answer where the run generates any."""
    cure = "take a model.dtype, model.device or training.max_length that suits it, or another model"
    with stage("model.path", "a forward pass of two rows", cure), evaluating(base.model):
        losses = data.task.losses(base.model, _batch(data, base, examples))
    if config.privacy is None and not torch.isfinite(losses).all():  # a refusal would tell of a private row
        raise InputError(
            "model.path: the loss of two rows is not finite before any training; take model.dtype: float32, "
            "or another model"
        )
    if config.evaluation.generate and config.evaluation.every is not None and "prompt_ids" in examples[0]:
        prompts = [example["prompt_ids"] for example in examples]
        with stage("evaluation.generate", "generation from two rows", "leave it out, or take another model"):
            generate_texts(base.model, data.tokenizer, prompts, max_new_tokens=2, batch_size=2)


def _warm_up(config: RunConfig, data: Data, base: BaseModel, examples: Sequence[Example]) -> None:
    """One step of the head's warm-up; the head is put back."""
    warmup = config.method.init.head_warmup
    if not base.task_head or warmup is None:
        return
    before = {name: parameter.detach().clone() for name, parameter in base.task_head.items()}
    once = Warmup(rounds=1, steps=1, learning_rate=warmup.learning_rate)
    with stage("method.init.head_warmup", "a step on two rows", "set it to null, or take another model"):
        cached = cache_base_outputs(base.model, [_batch(data, base, examples)])
        train_head(base.model, base.task_head, cached, data.task.losses, once)
    with torch.no_grad():
        for name, parameter in base.task_head.items():
            parameter.copy_(before[name])


def _step(config: RunConfig, data: Data, base: BaseModel, examples: Sequence[Example]) -> Sequence[Example]:
    """Forward and backward with an adapter in every target layer; the rows that it took to reach all layers.

    Raises:
        InputError: a layer gets no gradient: the model does not use it, or reads its weight past the adapter.
    """
    cure = "take other method.targets, training.gradient_checkpointing: false, or another model"
    for rows in (examples, (data.train or data.test)[:ROWS_TO_BE_SURE]):
        with stage("method.targets", f"a training step on {plural(len(rows), 'row')}", cure):
            left_out = _without_gradient(config, data, base, rows)
        if not left_out:
            return rows
    raise InputError(
        f"method.targets: no gradient reaches {len(left_out)} of {len(base.targets)} layers, such as "
        f"{left_out[0]}: the model does not use them here, or reads their weights past an adapter. Leave out "
        f"{', '.join(_endings(left_out, base.targets))}"
    )


def _endings(names: Sequence[str], of: Iterable[str]) -> list[str]:
    """The shortest ends of these names that no other layer's name has."""
    others = [f".{name}" for name in of if name not in names]

    def ending(name: str) -> str:
        parts = name.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts)))
        return next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), name)

    return sorted({ending(name) for name in names})


def _without_gradient(
    config: RunConfig, data: Data, base: BaseModel, examples: Sequence[Example]
) -> list[str]:
    factors = {name: _zeros(layer, base.device) for name, layer in base.targets.items()}
    attached = attach(base.model, factors, trains=("A", "B"))
    try:
        for parameter in base.task_head.values():
            parameter.requires_grad_(True)
        base.model.train()
        with autocast(local_training(config), base.device):
            loss = data.task.losses(base.model, _batch(data, base, examples)).sum()
        loss.backward()
        trained = {name: layer.factors().values() for name, layer in attached.layers.items()}
        return [name for name, parts in trained.items() if all(part.grad is None for part in parts)]
    finally:
        base.model.zero_grad(set_to_none=True)
        detach(attached)


def _zeros(layer: nn.Module, device: torch.device) -> Factors:
    """A LoRA of rank 1 that adds nothing."""
    out, n_in = features(layer)
    return Factors(torch.zeros(out, 1, device=device), torch.zeros(1, n_in, device=device), None)


def _estimate(config: RunConfig, data: Data, base: BaseModel, examples: Sequence[Example]) -> None:
    """The gradients that bases are made of, where they are."""
    method, init = method_of(config), config.method.init
    if method.draw is not None or method.bases != "init" or init.kind != "gradient":
        return
    batches, losses = [_batch(data, base, examples)], data.task.losses
    cure = "take method.init.kind: orthonormal, or another model"
    with stage("method.init.kind", "the gradients of two rows", cure), estimating(base.model):
        try:
            estimate_update(
                base.model, base.targets, batches, losses, lambda name, g: None, learning_rate=1.0, rule="raw"
            )
        except RunFailed as error:
            raise InputError(f"method.init.kind: {error}") from error
