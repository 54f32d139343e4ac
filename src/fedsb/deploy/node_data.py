"""A run's config with a node's own paths, and the node's rows as that run reads them."""

from __future__ import annotations

from pathlib import Path

from fedsb.config import RunConfig
from fedsb.deploy.node_config import NodeConfig
from fedsb.errors import InputError
from fedsb.models import load_preprocessor
from fedsb.runner.lengths import fixed_length
from fedsb.runner.owners import owners_of, with_owners
from fedsb.runner.prepare_data import Data, check_apart, task_of
from fedsb.runner.prepare_experts import counts_of, expert_names, numbers_of
from fedsb.runner.site_data import hold_out
from fedsb.tasks import Example, Row
from fedsb.tasks.owners import check_owners_apart
from fedsb.tasks.rows import read_rows


def localized(config: RunConfig, node: NodeConfig) -> RunConfig:
    """The run's config with this machine's paths and device. Rows without a label are this party's to take
    out: a run must not ask how many there are."""
    here = {key: value for key, value in node.model.model_dump().items() if value is not None}
    limit = config.data.limit.model_copy(update={"train": None})
    here_alone = {"train": node.data.train, "limit": limit, "drop_unlabelled": False}
    data = config.data.model_copy(update=here_alone)
    return config.model_copy(update={"model": config.model.model_copy(update=here), "data": data})


def read_data(config: RunConfig, node: NodeConfig) -> Data:
    """This party's examples, as its part of a federation in which it knows of no others'.

    Raises:
        InputError: they cannot be read, whatever the cause: the server must not learn which it is.
    """
    try:
        return _encoded(config, node)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{node.data.train}: cannot be read as the run's config has it ({type(error).__name__})"
        ) from error


def _encoded(config: RunConfig, node: NodeConfig) -> Data:
    notes: list[str] = []
    rows = _rows(node.data.train, node, notes)
    tokenizer = load_preprocessor(config.model.path, config.task.model_class)
    length = fixed_length(config)
    task = task_of(config, tokenizer, rows, length.tokens)
    examples = task.encode(rows, node.data.train)
    public = None
    if config.method.init.public is not None and node.data.public is not None:
        public_rows = _rows(node.data.public, node, notes)[: config.method.init.samples]
        public = task.encode(public_rows, node.data.public)
        check_apart(public, examples, node.data.public)
        check_owners_apart(public_rows, rows, config.owner, node.data.public, "data.public")
    parts = [[] if c != node.client else list(range(len(examples))) for c in range(config.federation.clients)]
    labels = [task.partition_label(row) for row in rows] if task.partition_label else None
    parts, tests = hold_out(config, parts, labels) if node.gives_scores else (parts, [[] for _ in parts])
    names = expert_names(config, [], node.data.train)
    examples = _of_experts(config, node, names, rows, examples)
    counts = counts_of(examples, parts)
    owners, of_clients = owners_of(config, rows, parts, node.data.train)
    return Data(
        task, tokenizer, with_owners(examples, owners), [], parts, None, public, names, counts,
        max_length=length.tokens, notes=(*notes, *filter(None, [length.said])),
        client_tests=tests, sites=tuple(config.federation.sites or ()), owners=of_clients,
    )  # fmt: skip


def _of_experts(
    config: RunConfig, node: NodeConfig, names: tuple[str, ...], rows: list[Row], examples: list[Example]
) -> list[Example]:
    """The examples with their experts' numbers: of the run's config, this party's, or its rows' column."""
    experts, assigned, named = config.method.experts, config.federation.client_experts, node.data.expert
    if experts is None or (experts.by is None and assigned is None):
        return examples
    if named is not None and named not in names:
        raise InputError(f"data.expert: this party's {named!r} is none of the run's experts")
    if assigned is not None:
        numbers = [assigned[node.client]] * len(examples)
        if named is not None and names[numbers[0]] != named:
            raise InputError(
                f"data.expert: this party's is {named!r}, federation.client_experts gives it "
                f"{names[numbers[0]]!r}"
            )
    elif named is not None:
        numbers = [names.index(named)] * len(examples)
    else:
        numbers = numbers_of(experts.by or "", names, rows, node.data.train)
    return [example | {"expert": number} for example, number in zip(examples, numbers, strict=True)]


def _rows(file: str, node: NodeConfig, notes: list[str]) -> list[Row]:
    """The file's rows with the columns that this party gives, under the run's names; all if it lists none.
    notes: takes what its owner should know of how the file was read."""
    rows, columns = read_rows(file, encoding=node.data.encoding, told=notes.append), node.data.columns
    if Path(file).is_dir() or {row.source for row in rows} != {str(Path(file))}:
        raise InputError(
            f"{file}: a folder or pattern; a node's rows are one file, which its ledger knows (of images: "
            "their bytes, or their paths below its folder)"
        )
    if not columns:
        return list(rows)
    return [{ours: row[theirs] for ours, theirs in columns.items() if theirs in row} for row in rows]
