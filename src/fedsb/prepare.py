"""From a config to what a run works on: rows, task, examples, partition, model. All input is checked here,
before anything expensive starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedsb import partition
from fedsb.adapter import Factors, attach, check_rank, features
from fedsb.check_method import check_method
from fedsb.check_privacy import check_privacy
from fedsb.client import LocalTraining
from fedsb.config import ClassificationConfig, RunConfig
from fedsb.data import read_rows, require_columns
from fedsb.errors import InputError
from fedsb.exchange import Exchange, Part
from fedsb.head import head_parameters
from fedsb.initialize import Start, Warmup, bases_kind
from fedsb.memory import Longest, Memory, available_bytes, check_memory, estimate_memory
from fedsb.methods import Aggregation, Method, Shape, by_name
from fedsb.methods.robust import FEWEST, robust
from fedsb.models import (
    chosen_targets,
    enable_checkpointing,
    input_device,
    load_base,
    load_shapes,
    load_tokenizer,
    pick_device,
)
from fedsb.norm_bound import NormBound
from fedsb.privacy.per_example import batch_norms
from fedsb.sampling import trained_heads
from fedsb.seeding import numpy_generator
from fedsb.sources import test_rows, train_name, train_rows
from fedsb.tasks import Row, Task, causal_lm, classification, label_set
from fedsb.trainable import Batch, Example, Trainable


@dataclass(frozen=True)
class Data:
    """The task, its examples, and who holds which training example."""

    task: Task
    tokenizer: Any
    train: list[Example]
    test: list[Example]
    parts: partition.Parts
    labels: list[str] | None
    """Label of each training example, where there are classes."""
    public: list[Example] | None = None
    """The examples of method.init.public."""


@dataclass(frozen=True)
class Base:
    """The base model with nothing attached yet."""

    model: nn.Module
    targets: dict[str, nn.Module]
    head: dict[str, nn.Parameter]
    device: torch.device


def prepare_data(config: RunConfig) -> Data:
    """Read, label, encode and partition.

    Raises:
        InputError: whatever is wrong with a file, a column, a label or the partition.
    """
    _check_cohort(config)
    check_method(config)
    check_privacy(config)
    rows, held_out = read_splits(config)
    tokenizer = load_tokenizer(config.model.path)
    task = make_task(config, tokenizer, rows)
    labels = [task.partition_label(row) for row in rows] if task.partition_label else None
    parts = make_partition(config, rows, labels)
    train, test = task.encode(rows, train_name(config)), task.encode(held_out, config.data.test)
    return Data(task, tokenizer, train, test, parts, labels, _public_examples(config, task))


def prepare_server_data(config: RunConfig, parts: partition.Parts) -> Data:
    """The server's share of a run whose training rows are elsewhere: the task, and the test examples.

    Args:
        parts: indices that stand for each client's examples.

    Raises:
        InputError: as `prepare_data`, or rows would be needed here.
    """
    _check_cohort(config)
    check_method(config)
    check_privacy(config)
    check_can_deploy(config)
    rows = None if config.evaluation.every is None else test_rows(config)
    tokenizer = load_tokenizer(config.model.path)
    task = make_task(config, tokenizer, [])
    test = [] if rows is None else task.encode(rows, config.data.test)
    return Data(task, tokenizer, [], test, parts, None, _public_examples(config, task))


def check_can_deploy(config: RunConfig) -> None:
    """Refuse what needs all rows in one place.

    Raises:
        InputError: with the key that can mend it.
    """
    if isinstance(config.task, ClassificationConfig) and config.task.labels is None:
        raise InputError(
            "task.labels: parties that keep their rows must agree on the classes; list them, e.g. "
            "labels: [negative, positive]"
        )
    init = config.method.init
    if init.upload == "whole" and init.kind == "gradient":
        raise InputError("method.init.upload: whole is for simulated runs; take factors or sketch")
    if config.method.refresh_every is not None:
        raise InputError("method.refresh_every: not over the network yet; leave it out")


def _public_examples(config: RunConfig, task: Task) -> list[Example] | None:
    source = config.method.init.public
    if source is None:
        return None
    rows = list(read_rows(source, limit=config.method.init.samples))
    return task.encode(rows, source)


def _check_cohort(config: RunConfig) -> None:
    wanted, clients = config.federation.clients_per_round, config.federation.clients
    if wanted is not None and wanted > clients:
        raise InputError(
            f"federation.clients_per_round: expected at most {clients} (all clients), found {wanted}; "
            "null takes all of them"
        )


def read_splits(config: RunConfig) -> tuple[list[Row], list[Row]]:
    """Train and test rows as the config's data section wants them."""
    return train_rows(config), test_rows(config)


def make_task(config: RunConfig, tokenizer: Any, rows: Sequence[Row]) -> Task:
    """The task value of this config; classes are those of the training rows."""
    wanted, max_length = config.task, config.training.max_length
    if isinstance(wanted, ClassificationConfig):
        names, regression = _classes(wanted, rows, train_name(config))
        return classification(
            tokenizer,
            text=wanted.text,
            label=wanted.label,
            label_names=names,
            regression=regression,
            max_length=max_length,
            metric=wanted.metric,
        )
    return causal_lm(
        tokenizer,
        prompt=wanted.prompt,
        response=wanted.response,
        max_length=max_length,
        max_new_tokens=wanted.max_new_tokens,
    )


def _classes(
    wanted: ClassificationConfig, train_rows: Sequence[Row], source: str
) -> tuple[tuple[str, ...] | None, bool]:
    if wanted.labels is not None:
        return tuple(wanted.labels), False
    return label_set(train_rows, wanted.label, source)


def make_partition(config: RunConfig, rows: Sequence[Row], labels: Sequence[str] | None) -> partition.Parts:
    """One list of example indices per client."""
    how, clients = config.federation.partition, config.federation.clients
    rng = numpy_generator(config.seed, "partition")
    if how.kind == "iid":
        return partition.iid(len(rows), clients, rng)
    if how.kind == "by-column":
        require_columns(rows, [how.column], source=train_name(config), key="federation.partition.column")
        return partition.by_column([str(row.get(how.column)) for row in rows], clients)
    keys = labels if labels is not None else _need_labels(how.kind)
    if how.kind == "dirichlet":
        return partition.dirichlet(keys, clients, alpha=how.alpha, min_size=how.min_size, rng=rng)
    return partition.shards(keys, clients, shards_per_client=how.shards_per_client, rng=rng)


def _need_labels(kind: str) -> list[str]:
    raise InputError(
        f"federation.partition.kind: {kind} needs class labels; for this task use iid or by-column"
    )


def prepare_base(config: RunConfig, data: Data) -> Base:
    """Load the base model, find its target layers, check the rank.

    Raises:
        InputError: no weights, corrupt weights, no such layer, a rank that does not fit, too little memory.
    """
    device = pick_device(config.model.device)
    check_memory(memory_of(config, data), free_memory(config), config)
    model = load_base(
        config.model.path,
        tokenizer=data.tokenizer,
        num_labels=data.task.num_labels,
        label_names=data.task.label_names,
        dtype=config.model.dtype,
        load_in_4bit=config.model.load_in_4bit,
        device=device,
        device_map=config.model.device_map,
        seed=config.seed,
    )
    if config.training.gradient_checkpointing:
        enable_checkpointing(model)
    return _base(config, data, model, device)


def _base(config: RunConfig, data: Data, model: nn.Module, device: torch.device) -> Base:
    targets = chosen_targets(model, config.method.targets)
    check_rank(targets, config.method.rank, heads=heads_of(config))
    _check_length(config, model)
    head = head_parameters(model) if data.task.num_labels is not None else {}
    _check_no_batch_norm(config, model)
    return Base(model, targets, head, input_device(model))


def memory_of(config: RunConfig, data: Data) -> Memory | None:
    """What the run will hold, before anything is loaded; None where the config does not say."""
    return estimate_memory(config, data.task.num_labels, Longest.of([*data.train, *data.test]))


def free_memory(config: RunConfig) -> int:
    """Bytes that the run may take where its model goes."""
    return available_bytes(pick_device(config.model.device), all_gpus=config.model.device_map is not None)


def needs_weights_at_server(config: RunConfig) -> bool:
    """Whether a server of clients elsewhere computes with the base model: to evaluate it, to add to its
    weights, to take bases from them, or to look at public examples through it."""
    method, init = method_of(config), config.method.init
    from_weights = method.draw is None and bases_kind(start_of(config, [[0]]), method) == "weights"
    return config.evaluation.every is not None or method.changes_base or from_weights or bool(init.public)


def prepare_shapes(config: RunConfig, data: Data) -> Base:
    """As `prepare_base`, without the base's weights: their shapes, from the config alone, and a head.

    Raises:
        InputError: no config, no such layer, a rank that does not fit.
    """
    model = load_shapes(
        config.model.path,
        num_labels=data.task.num_labels,
        label_names=data.task.label_names,
        dtype=config.model.dtype,
        seed=config.seed,
    )
    return _base(config, data, model, torch.device("cpu"))


def _check_no_batch_norm(config: RunConfig, model: nn.Module) -> None:
    mixing = batch_norms(model) if config.privacy else []
    if mixing:
        raise InputError(
            f"privacy: {mixing[0]} is a batch norm, which mixes the examples of a batch, so that no example "
            "can be clipped alone; take a model with layer norm, or leave privacy out"
        )


def _check_length(config: RunConfig, model: nn.Module) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and config.training.max_length > positions:
        raise InputError(
            f"training.max_length: expected at most {positions}, the model's positions, found "
            f"{config.training.max_length}"
        )


def method_of(config: RunConfig) -> Method:
    """The method value the config names."""
    return by_name(config.method.name)


def heads_of(config: RunConfig) -> int:
    """Heads of the core: the config's, or the method's own number."""
    method = method_of(config)
    return method.heads if config.method.heads is None else config.method.heads


def exchange_of(config: RunConfig, base: Base) -> Exchange:
    """What travels in this run."""
    method, wanted = method_of(config), config.method
    return Exchange(
        method=method,
        layers={name: Shape(*features(layer)) for name, layer in base.targets.items()},
        rank=wanted.rank,
        heads=heads_of(config),
        head={name: tuple(p.shape) for name, p in base.head.items()},
        scale=method.scale(wanted.rank, wanted.alpha),
        padding=config.federation.padding,
        residual_rank=wanted.residual_rank,
        upload_dtype=getattr(torch, config.federation.upload_dtype),
    )


def trainable_of(config: RunConfig, data: Data, base: Base, factors: Mapping[str, Factors]) -> Trainable:
    """The base with the adapter in it and its head open to training. Changes `base.model`."""
    exchange, task = exchange_of(config, base), data.task
    attached = attach(base.model, factors, trains=exchange.method.trains(1), scale=exchange.scale)
    for parameter in base.head.values():
        parameter.requires_grad_(True)
    return Trainable(attached, base.head, exchange, factors, task.collate, task.losses, base.device)


def part_of(config: RunConfig, client: int, round_number: int) -> Part:
    """The client's rank, and the heads it trains in this round."""
    ranks, trained = config.federation.client_ranks, config.federation.client_heads
    rank = config.method.rank if ranks is None else ranks[client]
    if trained is None:
        return Part(rank)
    rng = numpy_generator(config.seed, "heads", round_number, client)
    return Part(rank, trained_heads(heads_of(config), trained[client], rng))


def robust_average(config: RunConfig) -> Aggregation:
    """The method's aggregation, over the average that federation.robust asks for."""
    own, wanted = method_of(config).aggregation, config.federation.robust
    return own if wanted is None else robust(own, wanted.average, wanted.trim)


def fewest_updates(config: RunConfig) -> int:
    """Updates without which a round's average would not be what federation.robust asks for."""
    wanted = config.federation.robust
    return 1 if wanted is None or wanted.average == "mean" else FEWEST


def norm_bound(config: RunConfig) -> NormBound | None:
    """How far an update may lie from the broadcast."""
    wanted = config.federation.robust
    if wanted is None or wanted.norm_bound is None:
        return None
    return NormBound(wanted.norm_bound, wanted.over_bound)


def local_training(config: RunConfig) -> LocalTraining:
    """The config's training section as the client's flat arguments."""
    not_the_loops = {"max_length", "gradient_checkpointing"}
    return LocalTraining(
        **config.training.model_dump(exclude=not_the_loops),
        rounds=config.federation.rounds,
        timeout_seconds=config.federation.client_timeout_seconds,
    )


def start_of(config: RunConfig, parts: partition.Parts) -> Start:
    """The config's method.init section as flat arguments."""
    init = config.method.init
    return Start(
        kind=init.kind,
        rule=init.rule,
        samples=init.samples,
        batch_size=init.batch_size,
        upload=init.upload,
        head_warmup=Warmup(**init.head_warmup.model_dump()) if init.head_warmup else None,
        rank=config.method.rank,
        heads=heads_of(config),
        step_size=step_size(config, parts),
        seed=config.seed,
    )


def step_size(config: RunConfig, parts: partition.Parts) -> float:
    """Size of the estimated first update; by default that of one step among all of a client's in the run."""
    given = config.method.init.step_size
    training, largest = local_training(config), max(len(part) for part in parts)
    steps = training.rounds * training.steps_per_round(largest)
    return training.first_learning_rate(largest) / steps if given is None else given


def batches_of(data: Data, device: torch.device) -> Any:
    """(examples, batch size) -> batches of examples of like length, on the device."""

    def batches(examples: Sequence[Example], batch_size: int) -> list[Batch]:
        ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
        groups = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
        return [{k: t.to(device) for k, t in data.task.collate(group).items()} for group in groups]

    return batches


def partition_record(config: RunConfig, data: Data) -> dict[str, Any]:
    """What partition.json holds."""
    record: dict[str, Any] = {
        "kind": config.federation.partition.kind if data.train else "nodes",
        "clients": {str(client): part for client, part in enumerate(data.parts)},
    }
    if data.labels is not None and config.privacy is None:  # counts of labels are a statistic of private rows
        counts = [Counter(data.labels[i] for i in part) for part in data.parts]
        record["labels"] = {str(client): dict(sorted(count.items())) for client, count in enumerate(counts)}
    return record
