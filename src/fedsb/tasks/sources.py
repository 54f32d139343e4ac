"""The rows that a config names, under the names by which its task calls their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsb.config import RunConfig
from fedsb.config.sections import BenchmarkConfig, ClassificationConfig
from fedsb.tasks import Row
from fedsb.tasks.commonsense import prepare
from fedsb.tasks.rows import is_missing, read_rows, require_columns

SOURCE = "source"
"""The column that says which of several sources a row is from."""


def train_rows(config: RunConfig) -> list[Row]:
    """Training rows as the config's data section wants them."""
    wanted = config.data
    sources = wanted.train if isinstance(wanted.train, dict) else {None: wanted.train}
    found: list[Row] = []
    for name, source in sources.items():
        rows = shaped(
            read_rows(source, limit=wanted.limit.train),
            source,
            preparation=wanted.prepare.train,
            columns=wanted.columns.train,
            key="data.columns.train",
        )
        found += rows if name is None else [{**row, SOURCE: name} for row in rows]
    return labelled(config, found)


def train_name(config: RunConfig) -> str:
    """The training data's name, for errors."""
    train = config.data.train
    return train if isinstance(train, str) else ", ".join(train.values())


def test_rows(config: RunConfig) -> list[Row]:
    """Test rows as the config's data section wants them."""
    wanted = config.data
    rows = shaped(
        read_rows(wanted.test, limit=wanted.limit.test, split="test"),
        wanted.test,
        preparation=wanted.prepare.test,
        columns=wanted.columns.test,
        key="data.columns.test",
    )
    return labelled(config, rows)


def benchmark_rows(wanted: BenchmarkConfig, name: str) -> list[Row]:
    """The rows of a benchmark."""
    return shaped(
        read_rows(wanted.data, limit=wanted.limit, split="test"),
        wanted.data,
        preparation=wanted.prepare,
        columns=wanted.columns,
        key=f"evaluation.benchmarks.{name}.columns",
    )


def shaped(
    rows: Sequence[Row], source: str, *, preparation: str | None, columns: Mapping[str, str], key: str
) -> list[Row]:
    """The rows in the form that a recipe's prompt is made for, then under the task's column names."""
    made: list[Row] = list(rows) if preparation is None else [*prepare(preparation, rows, source)]
    if not columns:
        return made
    require_columns(made, columns.values(), source=source, key=key)
    return [renamed(row, columns) for row in made]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its values under the task's names too."""
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def labelled(config: RunConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows without those that have no label, if the config drops such."""
    if not (config.data.drop_unlabelled and isinstance(config.task, ClassificationConfig)):
        return list(rows)
    return [row for row in rows if not is_missing(row.get(config.task.label))]
