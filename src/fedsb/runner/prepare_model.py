"""From a config to the base model: loaded, its target layers found, checked, an adapter put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach, check_rank
from fedsb.adapter.linear import features
from fedsb.adapter.routing import Terms
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.config.sections.task import AnswerSection
from fedsb.errors import InputError
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import Example, LocalModel
from fedsb.federation.routed_losses import with_penalties
from fedsb.methods import Shape
from fedsb.models.blank import takes_images
from fedsb.models.config_json import stored_config
from fedsb.models.devices import pick_device
from fedsb.models.head import head_note, head_parameters
from fedsb.models.layer_uses import uses_of_layers
from fedsb.models.limits import check_length, check_room_for_answers, check_token_ids
from fedsb.models.load import enable_checkpointing, input_device, load_base
from fedsb.models.shapes import load_shapes
from fedsb.models.targets import notes_on
from fedsb.privacy.per_example import batch_norms
from fedsb.runner.arguments import heads_of
from fedsb.runner.check_packing import check_packing
from fedsb.runner.external_experts import check_expert_folders, target_layers
from fedsb.runner.memory import Longest, Memory, available_bytes, check_memory, estimate_memory
from fedsb.runner.prepare_data import Data
from fedsb.runner.prepare_experts import plan_of, routing_for, start_experts
from fedsb.tasks import Task
from fedsb.tasks.packing import packed
from fedsb.tasks.task import token_ids


@dataclass(frozen=True)
class BaseModel:
    """The base model with nothing attached yet.

    Attributes:
        notes: lines about its own head, and about what is not adapted and why.
    """

    model: nn.Module
    targets: dict[str, nn.Module]
    task_head: dict[str, nn.Parameter]
    device: torch.device
    notes: list[str]


def prepare_base(config: RunConfig, data: Data) -> BaseModel:
    """Load the base model, find its target layers, check the rank.

    Raises:
        InputError: no weights, corrupt weights, no such layer, a rank that does not fit, too little memory,
            or a model that packs no rows where it should.
    """
    config = data.settled(config)
    check_expert_folders(config)
    check_memory(memory_of(config, data), free_memory(config), config)
    model = load_model(config, config.model.path, data.tokenizer, data.task)
    if config.training.gradient_checkpointing:
        _checkpoint(model)
    base = _base(config, data, model)
    check_packing(config, data, model)
    return base


def load_model(config: RunConfig, path: str, tokenizer: Any, task: Task) -> nn.Module:
    """The base model of this path (hub id or folder) for a task, placed and with a head as the config says.

    Raises:
        InputError: as `load_base`.
    """
    return load_base(
        path,
        tokenizer=tokenizer,
        num_labels=task.num_labels,
        label_names=task.label_names,
        model_class=config.task.model_class,
        multi_label=config.task.multi_label,
        dtype=config.model.dtype,
        load_in_4bit=config.model.load_in_4bit,
        device=pick_device(config.model.device),
        device_map=config.model.device_map,
        seed=config.seed,
    )


def prepare_shapes(config: RunConfig, data: Data) -> BaseModel:
    """As `prepare_base`, without the base's weights: their shapes, from the config alone, and a head.

    Raises:
        InputError: no config, no such layer, a rank that does not fit.
    """
    config = data.settled(config)
    model = load_shapes(
        config.model.path,
        num_labels=data.task.num_labels,
        label_names=data.task.label_names,
        model_class=config.task.model_class,
        multi_label=config.task.multi_label,
        dtype=config.model.dtype,
        seed=config.seed,
    )
    return _base(config, data, model)


def _checkpoint(model: Any) -> None:
    if not model.supports_gradient_checkpointing:
        raise InputError(
            f"training.gradient_checkpointing: this model ({model.config.model_type}) has none; leave it out"
        )
    with stage("training.gradient_checkpointing", "switching it on", "leave it out"):
        enable_checkpointing(model)


def _base(config: RunConfig, data: Data, model: nn.Module) -> BaseModel:
    examples = [*data.train, *data.test, *(data.public or [])]
    check_limits(config, model, data.tokenizer, examples, path=config.model.path)
    with stage("method.targets", "finding the layers to adapt", "name them, or take another model"):
        choice = target_layers(config, model)
    check_rank(choice.layers, config.method.rank, heads=heads_of(config))
    head = head_parameters(model) if data.task.num_labels is not None else {}
    _check_no_batch_norm(config, model)
    _check_whole_examples(config, model, choice.layers)
    notes = [*head_notes(config, config.model.path, data.task), *notes_on(model, choice)]
    return BaseModel(model, choice.layers, head, input_device(model), notes)


def head_notes(config: RunConfig, path: str, task: Task) -> list[str]:
    """What becomes of a head that the checkpoint comes with, where it has one."""
    if task.num_labels is None:
        return []
    stored, model_class = stored_config(path), config.task.model_class
    note = head_note(stored, task.num_labels, task.label_names, model_class)
    return [note] if note else []


def check_limits(
    config: RunConfig, model: nn.Module, tokenizer: Any, examples: Sequence[Example], *, path: str
) -> None:
    """Refuse examples that this model (of `path`) has no embeddings or positions for.

    Raises:
        InputError: with the numbers of both sides.
    """
    if takes_images(model):
        return
    check_length(model, config.training.tokens)
    if isinstance(config.task, AnswerSection) and config.evaluation.generate:
        check_room_for_answers(model, config.task.max_new_tokens)
    check_token_ids(model, tokenizer, largest_id(examples), path)


def largest_id(examples: Sequence[Example]) -> int:
    """The largest token id of examples; 0 where there is none."""
    return max((max(token_ids(example), default=0) for example in examples), default=0)


def memory_of(config: RunConfig, data: Data) -> Memory | None:
    """What the run will hold, before anything is loaded; None where the config does not say, or is not
    asked."""
    if not config.model.check_memory:
        return None
    longest = Longest.of([*data.train, *data.test])
    in_16_bits = config.model.dtype != "float32" or config.training.autocast is not None
    if config.privacy and config.privacy.unit == "example" and in_16_bits:
        longest = replace(longest, tokens=data.max_length)  # every batch has this shape
    return estimate_memory(data.settled(config), data.task.num_labels, longest, len(data.experts))


def free_memory(config: RunConfig) -> int:
    """Bytes that the run may take where its model goes."""
    return available_bytes(pick_device(config.model.device), all_gpus=config.model.device_map is not None)


def _check_no_batch_norm(config: RunConfig, model: nn.Module) -> None:
    mixing = batch_norms(model) if config.privacy else []
    if mixing:
        raise InputError(
            f"privacy: {mixing[0]} is a batch norm, which mixes the examples of a batch, so that no example "
            "can be clipped alone; take a model with layer norm, or leave privacy out"
        )


def _check_whole_examples(config: RunConfig, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """A layer that sees windows has a gradient for each of them, none for the example to be clipped by."""
    uses = uses_of_layers(model) if config.privacy and config.privacy.unit == "example" else None
    regrouped = sorted(uses.regrouped & layers.keys()) if uses else []
    if regrouped:
        raise InputError(
            f"privacy: {len(regrouped)} layers, such as {regrouped[0]}, see parts of examples as rows "
            "of their own (windows), so that no example can be clipped alone; take other method.targets,"
            " another model such as ViT, or privacy.unit: client"
        )


def exchange_of(
    config: RunConfig,
    base: BaseModel,
    experts: Sequence[str] = (),
    factors: Mapping[str, Factors] | None = None,
) -> Exchange:
    """What travels in this run.

    Args:
        experts: the names of a mixture's.
        factors: as they start, whose ranks may be each layer's own; None: not known yet.
    """
    method, settings = method_of(config), config.method
    return Exchange(
        method=method,
        layers={name: Shape(*features(layer)) for name, layer in base.targets.items()},
        rank=settings.rank,
        ranks=own_ranks(config, factors or {}),
        heads=heads_of(config),
        task_head={name: tuple(p.shape) for name, p in base.task_head.items()},
        scale=method.scale(settings.rank, settings.alpha),
        padding="owners" if experts else config.federation.padding,
        residual_rank=settings.residual_rank,
        upload_dtype=getattr(torch, config.federation.upload_dtype),
        moments=config.training.moments,
        control_variates=config.federation.control_variates,
        experts=plan_of(config, experts, getattr(base.model.config, "hidden_size", 0)),
    )


def own_ranks(config: RunConfig, factors: Mapping[str, Factors]) -> dict[str, int] | None:
    """Each layer's rank, where the start chose them; None: they are all method.rank, or not known yet."""
    if config.method.init.ranks == "equal" or not factors:
        return None
    return {name: part.A.shape[0] // heads_of(config) for name, part in factors.items()}


def local_model_of(
    config: RunConfig, data: Data, base: BaseModel, factors: Mapping[str, Factors]
) -> LocalModel:
    """The base with the adapter in it and its head open to training. Changes `base.model`."""
    exchange, task = exchange_of(config, base, data.experts, factors), data.task
    task = packed(task, data.tokenizer) if config.training.packing else task
    factors = start_experts(config, data.experts, factors)
    if "P" in exchange.method.stays:
        factors = {
            n: f._replace(P=None if f.R is None else torch.zeros_like(f.R)) for n, f in factors.items()
        }
    routing = routing_for(config, data.experts, data.counts)
    with stage("method.targets", "putting the adapter in", "take other layers, or another model"):
        attached = attach(
            base.model,
            factors,
            trains=exchange.method.trains(1),
            scale=exchange.scale,
            routing=routing,
            less_start=exchange.method.less_start,
        )
    for parameter in base.task_head.values():
        parameter.requires_grad_(True)
    terms = Terms(**config.method.experts.terms) if config.method.experts else Terms()
    losses = with_penalties(task.losses, attached, terms)
    return LocalModel(attached, base.task_head, exchange, factors, task.collate, losses, base.device)
