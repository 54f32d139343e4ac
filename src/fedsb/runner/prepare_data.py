"""From a config to rows, task, examples, partition. All input is checked before anything expensive starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fedsb.common.seeding import numpy_generator
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.privacy_checks import check_delta
from fedsb.config.sections.task import OWN_SECTIONS, ClassificationConfig
from fedsb.errors import InputError
from fedsb.federation import partition
from fedsb.federation.experts import Counts
from fedsb.federation.fixed_shape import OfOneShape, batches_of_one_shape, computes_in_16_bits
from fedsb.federation.local_model import Batch, Example
from fedsb.models import load_preprocessor
from fedsb.runner.lengths import (
    LOOKED_AT,
    Length,
    chosen_length,
    fixed_length,
    has_lengths,
    limit_of,
    with_length,
)
from fedsb.runner.owners import owner_notes, owners_of, suspected_owner, with_owners
from fedsb.runner.prepare_experts import (
    counts_of,
    counts_said,
    expert_names,
    with_known_experts,
    with_own_experts,
)
from fedsb.runner.site_data import hold_out, site_names
from fedsb.tasks import Row, Task, make_task
from fedsb.tasks.class_weights import counts as class_counts
from fedsb.tasks.class_weights import uneven, with_class_weights
from fedsb.tasks.cuts import cut_counts
from fedsb.tasks.held_out import Split, num_repeated, told
from fedsb.tasks.owners import check_owners_apart
from fedsb.tasks.rows import cell_text, read_rows, require_columns
from fedsb.tasks.sources import run_rows, test_name, test_rows, train_name
from fedsb.tasks.task import content_of, length_of


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
    experts: tuple[str, ...] = ()
    """Names of a mixture's experts."""
    counts: Mapping[int, Counts] = field(default_factory=dict)
    """Client -> its experts and its examples of each, where they are known before training."""
    max_length: int = 0
    """Tokens that an example may have."""
    split: Split | None = None
    """Which of the rows are test rows, where the config names a share of them."""
    notes: tuple[str, ...] = ()
    """What to say of how files were read and of what was chosen by the rows."""
    client_tests: partition.Parts = field(default_factory=list)
    """By client, the examples that it is scored on and never trains on; indices as in `parts`."""
    sites: tuple[str, ...] = ()
    """What clients are called; empty where they have numbers alone."""
    owners: tuple[int, ...] = ()
    """How many owners each client's examples have, where `privacy.owner` is set and they are known here."""
    owner_like: str | None = None
    """A column that looks as if it said whose a row is, where rows are protected one by one."""

    def settled(self, config: RunConfig) -> RunConfig:
        """The config with the length that was chosen."""
        return with_length(config, self.max_length)


def prepare_data(config: RunConfig, kept: Split | None = None) -> Data:
    """Read, split, label, encode and partition.

    Args:
        kept: the split of a run that is resumed.

    Raises:
        InputError: whatever is wrong with a file, a column, a label, the split or the partition, or a delta
            too large for its clients.
    """
    check_settings(config)
    notes: list[str] = []
    with stage("data", "reading the rows", "fix the files, or the keys that name them", quotes=False):
        rows, held_out, split = run_rows(config, notes.append, kept)
    tokenizer = load_preprocessor(config.model.path, config.task.model_class)
    length, task, encoded = sized_task(config, tokenizer, rows)
    train = encoded or encode(task, rows, train_name(config))
    labels = [task.partition_label(row) for row in rows] if task.partition_label else None
    parts = make_partition(config, rows, labels)
    sites = site_names(config, parts, rows)
    parts, client_tests = hold_out(config, parts, labels)
    owners, of_clients = owners_of(config, rows, parts)
    owner_like = suspected_owner(config, rows)
    if config.privacy is not None:
        check_delta(config, of_clients or [len(part) for part in parts])
    names = expert_names(config, rows, train_name(config))
    test = [] if config.scored_at_clients_alone else encode(task, held_out, test_name(config))
    looked_at = [*_looked_at(task, rows, train, test, shared=split is not None), *owner_notes(owner_like)]
    train = with_owners(train, owners)
    notes += [*(told(split, config) if split else ()), *looked_at, length.said]
    train = with_own_experts(config, names, rows, train, parts, train_name(config))
    test = with_known_experts(config, names, held_out, test)
    public, counts = public_examples(config, task, train, rows), counts_of(train, parts)
    return Data(
        task, tokenizer, train, test, parts, labels, public, names, counts,
        max_length=length.tokens, split=split, notes=tuple(filter(None, notes)),
        client_tests=client_tests, sites=sites, owners=of_clients, owner_like=owner_like,
    )  # fmt: skip


def sized_task(
    config: RunConfig, tokenizer: Any, rows: Sequence[Row]
) -> tuple[Length, Task, list[Example] | None]:
    """The length of examples, the task, and the training examples where the length was chosen by them.

    Raises:
        InputError: as `task_of` and `encode`.
    """
    if config.training.max_length != "auto" or config.privacy is not None or not has_lengths(config):
        length = fixed_length(config)
        return length, task_of(config, tokenizer, rows, length.tokens), None
    limit = limit_of(config)
    kept = min(limit, LOOKED_AT)
    examples = encode(task_of(config, tokenizer, rows, kept), rows, train_name(config))
    length = chosen_length(examples, limit)
    whole = min(length.tokens, kept)
    fits = all("tokens" in example and example["tokens"][0] <= whole for example in examples)
    return length, task_of(config, tokenizer, rows, length.tokens), examples if fits else None


def _looked_at(
    task: Task, rows: Sequence[Row], train: Sequence[Example], test: Sequence[Example], *, shared: bool
) -> Iterator[str]:
    """Warnings about rows that are in both splits, and about classes of very different sizes.

    shared: the test rows are a share of the training rows.
    """
    repeated = num_repeated(train, test)
    if repeated:
        cure = "remove repeated rows" if shared else "take them out of one of the two"
        yield (
            f"warning: {repeated:,} of {len(test):,} test examples are training examples, too, token by "
            f"token; {cure}"
        )
    if task.label_names is not None and task.partition_label is not None:
        yield from (f"warning: {note}" for note in uneven(class_counts(task, rows)))


def prepare_server_data(
    config: RunConfig,
    parts: partition.Parts,
    experts: Sequence[Sequence[int]] = (),
    client_tests: Sequence[Sequence[int]] = (),
) -> Data:
    """The server's share of a run whose training rows are elsewhere: the task, and the test examples.

    Args:
        parts: indices that stand for each client's examples.
        experts: by client, how many examples of each expert it says it has, in their order.
        client_tests: indices that stand for those each client is scored on.

    Raises:
        InputError: as `prepare_data`, or rows would be needed here.
    """
    check_settings(config)
    check_can_deploy(config)
    notes: list[str] = []
    rows = test_rows(config, notes.append) if config.scores_test_rows else None
    tokenizer = load_preprocessor(config.model.path, config.task.model_class)
    length = fixed_length(config)
    task = task_of(config, tokenizer, [], length.tokens)
    test = [] if rows is None else encode(task, rows, test_name(config))
    names = expert_names(config, [], train_name(config))
    test = with_known_experts(config, names, rows or [], test)
    public, counts = public_examples(config, task, [], []), counts_said(config, names, parts, experts)
    notes.append(length.said)
    return Data(
        task, tokenizer, [], test, parts, None, public, names, counts,
        max_length=length.tokens, notes=tuple(filter(None, notes)),
        client_tests=[list(rows) for rows in client_tests], sites=site_names(config, parts, []),
    )  # fmt: skip


def check_can_deploy(config: RunConfig) -> None:
    """Refuse what needs all rows in one place.

    Raises:
        InputError: with the key that can fix it.
    """
    task = config.task
    if not isinstance(task, OWN_SECTIONS):
        raise InputError(f"task.kind: {task.kind} of another package is for simulated runs")
    if task.classes_are_of_rows:
        numbers = ", or say task.regression: true if labels are numbers"
        raise InputError(
            "task.labels: parties that keep their rows must agree on the classes; list them, e.g. "
            f"labels: [negative, positive]{numbers if isinstance(task, ClassificationConfig) else ''}"
        )
    _check_needs_no_rows(config)
    init, experts = config.method.init, config.method.experts
    if experts is not None and experts.by is not None and experts.names is None:
        raise InputError(
            "method.experts.names: parties that keep their rows must agree on the experts; list the values "
            "of method.experts.by, e.g. names: [law, medicine]"
        )
    if experts is not None and experts.folders is not None:
        raise InputError("method.experts.folders: for simulated runs; leave it out")
    if init.upload == "whole" and init.kind == "gradient":
        raise InputError("method.init.upload: whole is for simulated runs; take factors or sketch")
    if init.from_run is not None:
        raise InputError(
            "method.init.from_run: for simulated runs, since nodes make their own bases; leave it out, or "
            "export the earlier run merged and let model.path be that"
        )
    if "pooled" in config.evaluation.baselines:
        raise InputError(
            "evaluation.baselines: pooled is for simulated runs, which have all rows; take [local]"
        )
    if refreshes := config.method.refreshes:
        raise InputError(f"{refreshes}: not over the network yet; leave it out")
    _check_privacy_at_nodes(config)


def _check_privacy_at_nodes(config: RunConfig) -> None:
    if config.privacy is not None and config.privacy.ledger is not None:
        raise InputError("privacy.ledger: for simulated runs, and each node keeps its own; leave it out")
    if config.privacy is not None and config.privacy.mechanism == "banded":
        raise InputError(
            "privacy.mechanism: banded is for simulated runs: a server that asks for a round twice would "
            "see two "
            "results under one noise; leave it out"
        )
    if config.sums_gradients and config.privacy is not None and config.privacy.delta is None:
        raise InputError(
            "privacy.delta: name it beside privacy.noise: shared, since the noise that parties share is of "
            "one delta, and each knows its own number of rows alone"
        )
    if config.privacy is not None and config.privacy.owner is not None and config.privacy.delta is None:
        raise InputError(
            "privacy.delta: name it beside privacy.owner, below one over the owners of each party, whose "
            "number "
            "parties keep to themselves"
        )


def _check_needs_no_rows(config: RunConfig) -> None:
    """Refuse what the training rows of all parties would have to be counted or drawn for."""
    if config.training.class_weights == "balanced":
        raise InputError(
            "training.class_weights: balanced would need each party's counts of labels, which nobody sends; "
            "agree on numbers, e.g. class_weights: {negative: 1, positive: 4}"
        )
    if isinstance(config.data.test, float) and config.evaluation.every is not None:
        raise InputError(
            "data.test: parties keep their rows, so the server can hold none of them out; name a file of "
            "test rows that it may have, or set evaluation.at_clients: true (each party holds out rows of "
            "its own), or evaluation.every: null (then nothing is scored here)"
        )


def public_examples(
    config: RunConfig, task: Task, train: Sequence[Example], train_rows: Sequence[Row]
) -> list[Example] | None:
    """The rows that bases may be made of, where the config names any.

    Raises:
        InputError: the file or its columns are wrong, or privacy is to protect rows that are in it.
    """
    source = config.method.init.public
    if source is None:
        return None
    rows = list(read_rows(source, limit=config.method.init.samples, encoding=config.data.encoding))
    public = encode(task, rows, source)
    if config.privacy is not None:
        check_apart(public, train, source)
        check_owners_apart(rows, train_rows, config.owner, source, "method.init.public")
    return public


def check_apart(public: Sequence[Example], train: Sequence[Example], source: str) -> None:
    """Refuse public rows that are private ones too: bases would show what privacy is said to hide."""
    shown = {content_of(example) for example in public}
    both = shown.intersection(content_of(example) for example in train)
    if both:
        raise InputError(
            f"method.init.public: {len(both)} of the {len(shown)} different inputs of {source} are training "
            "rows, too, and what bases are made of has no protection. Name other rows, or take these out of "
            "the training rows"
        )


def task_of(config: RunConfig, tokenizer: Any, rows: Sequence[Row], max_length: int | None = None) -> Task:
    """The task value of this config; classes, and their weights, are those of the training rows.

    max_length: None: as the config fixes it.

    Raises:
        InputError: clients are to be scored, and the task cannot do that, or not with noise.
    """
    tokens = max_length or fixed_length(config).tokens
    task = make_task(config.task, tokenizer, rows, source=train_name(config), max_length=tokens)
    if config.scores_at_clients and task.totals is None:
        raise InputError(
            f"evaluation.at_clients: task.kind {config.task.kind} has no sums that clients could be scored "
            "by; leave at_clients and data.client_test out"
        )
    if config.scores_at_clients and config.privacy is not None:
        task = _with_noised_totals(config, task)
    return with_class_weights(task, config.training.class_weights, rows)


def _with_noised_totals(config: RunConfig, task: Task) -> Task:
    noised = task.totals.noised if task.totals else None
    if noised is None or noised.sensitivity is None:
        raise InputError(
            "evaluation.at_clients: with privacy clients give counts of classes with noise, and what "
            f"task.kind {config.task.kind} is scored by here has no bound that noise could cover; leave "
            "at_clients and data.client_test out, and score on data.test"
        )
    return replace(task, totals=noised)


def encode(task: Task, rows: Sequence[Row], source: str) -> list[Example]:
    """The task's examples of these rows.

    Raises:
        InputError: a row is wrong, or the tokenizer cannot take it.
    """
    cure = "fix the row that it stops at (data.limit finds it), or take another tokenizer"
    with stage("model.path", f"encoding {source}", cure, quotes=False):
        return task.encode(rows, source)


def make_partition(config: RunConfig, rows: Sequence[Row], labels: Sequence[str] | None) -> partition.Parts:
    """One list of example indices per client. labels: each row's class, where there are classes.

    Raises:
        InputError: too few rows, or rows without a value to deal them by.
    """
    section, clients = config.federation.partition, config.federation.clients
    rng = numpy_generator(config.seed, "partition")
    if section.kind == "iid":
        return partition.iid(len(rows), clients, rng)
    values = _values(config, rows, section.column, labels)
    if section.kind == "by-column":
        named = partition.by_name(values, config.federation.sites or ())
        return named or partition.by_column(values, clients, rng)
    if section.kind == "dirichlet":
        return partition.dirichlet(values, clients, alpha=section.alpha, min_size=section.min_size, rng=rng)
    return partition.shards(values, clients, shards_per_client=section.shards_per_client, rng=rng)


def _values(
    config: RunConfig, rows: Sequence[Row], column: str | None, labels: Sequence[str] | None
) -> Sequence[str]:
    """What each row is dealt by: its value in the column, or else its class."""
    if column is not None:
        source = train_name(config)
        require_columns(rows, [column], source=source, key="federation.partition.column")
        return [cell_text(row, column, source=source, number=n) for n, row in enumerate(rows, start=1)]
    if labels is None:
        kind = config.federation.partition.kind
        raise InputError(
            f"federation.partition.column: {kind} deals by class labels, which this task has none of; name a "
            f"column of the rows, e.g. {{kind: {kind}, column: topic}}, or use kind: iid"
        )
    return labels


def batches_of(data: Data, device: torch.device) -> Any:
    """(examples, batch size) -> batches of examples of like length, on the device."""

    def batches(examples: Sequence[Example], batch_size: int) -> list[Batch]:
        ordered = sorted(examples, key=length_of)
        groups = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
        return [{k: t.to(device) for k, t in data.task.collate(group).items()} for group in groups]

    return batches


def protected_batches(data: Data, model: nn.Module, device: torch.device, max_length: int) -> OfOneShape:
    """As `batches_of`, and the losses, where no example may show in another's gradient."""
    task = data.task
    if not computes_in_16_bits(model, None):
        return batches_of(data, device), task.losses
    return batches_of_one_shape(task.collate, task.losses, device, max_length)


def cut_record(config: RunConfig, data: Data, *, shown: bool) -> dict[str, dict[str, Any]]:
    """Counts of what was cut from the examples of each split, and their lengths.

    shown: to others than those who hold the rows, so that those of private training rows are left out.
    """
    private = shown and config.privacy is not None
    splits = {"train": [] if private else data.train, "test": data.test}
    counts = {name: cut_counts(examples, data.max_length) for name, examples in splits.items()}
    return {name: of_split for name, of_split in counts.items() if of_split}


def partition_record(config: RunConfig, data: Data) -> dict[str, Any]:
    """What partition.json holds: of each client its examples; of a private run, whose folder may be shown,
    their number alone, which the statement calls public."""
    private = config.privacy is not None
    record: dict[str, Any] = {
        "kind": config.federation.partition.kind if data.train else "nodes",
        "clients": {str(client): len(part) if private else part for client, part in enumerate(data.parts)},
    }
    if data.owners:
        record["owners"] = {str(client): count for client, count in enumerate(data.owners)}
    if data.sites:
        record["names"] = {str(client): name for client, name in enumerate(data.sites)}
    if any(data.client_tests):
        record["tests"] = {
            str(client): len(part) if private else part for client, part in enumerate(data.client_tests)
        }
    if data.labels is not None and not private:  # counts of labels are a statistic of private rows
        counts = [Counter(data.labels[i] for i in part) for part in data.parts]
        record["labels"] = {str(client): dict(sorted(count.items())) for client, count in enumerate(counts)}
    return record
