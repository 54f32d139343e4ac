"""The rows that a config names, under the names by which its task calls their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsb.config import RunConfig
from fedsb.config.sections import (
    OWN_SECTIONS,
    BenchmarkConfig,
    ClassificationConfig,
    ImageClassificationConfig,
    Source,
)
from fedsb.tasks import Row
from fedsb.tasks.commonsense import prepare
from fedsb.tasks.labels import has_label
from fedsb.tasks.pictures import with_picture
from fedsb.tasks.rows import like, read_rows, require_columns
from fedsb.tasks.rows.cells import ClassId

SOURCE = "source"
"""The column that says which of several sources a row is from."""


def train_rows(config: RunConfig) -> list[Row]:
    """Training rows as the config's data section has them."""
    data = config.data
    sources = data.train if isinstance(data.train, dict) else {None: data.train}
    rows: list[Row] = []
    for name, source in sources.items():
        of_source = shaped(
            read_rows(source, limit=data.limit.train),
            source_name(source),
            preparation=data.prepare.train,
            columns=data.columns.train,
            key="data.columns.train",
        )
        rows += of_source if name is None else [like(row, {**row, SOURCE: name}) for row in of_source]
    return labelled(config, rows)


def train_name(config: RunConfig) -> str:
    """The training data's name, for errors."""
    train = config.data.train
    return ", ".join(map(source_name, train.values())) if isinstance(train, dict) else source_name(train)


def source_name(source: Source) -> str:
    """A source's name, for errors: its files'."""
    return source if isinstance(source, str) else ", ".join(source)


def test_rows(config: RunConfig) -> list[Row]:
    """Test rows as the config's data section has them."""
    data = config.data
    rows = shaped(
        read_rows(data.test, limit=data.limit.test, split="test"),
        source_name(data.test),
        preparation=data.prepare.test,
        columns=data.columns.test,
        key="data.columns.test",
    )
    return labelled(config, rows)


def benchmark_rows(benchmark: BenchmarkConfig, name: str) -> list[Row]:
    """The rows of a benchmark."""
    return shaped(
        read_rows(benchmark.data, limit=benchmark.limit, split="test"),
        benchmark.data,
        preparation=benchmark.prepare,
        columns=benchmark.columns,
        key=f"evaluation.benchmarks.{name}.columns",
    )


def shaped(
    rows: Sequence[Row], source: str, *, preparation: str | None, columns: Mapping[str, str], key: str
) -> list[Row]:
    """The rows in the form that a recipe's prompt is made for, then under the task's column names."""
    prepared = list(rows) if preparation is None else prepare(preparation, rows, source)
    if not columns:
        return prepared
    require_columns(prepared, columns.values(), source=source, key=key)
    return [renamed(row, columns) for row in prepared]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its values under the task's names too."""
    return like(row, {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}})


def labelled(config: RunConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows, without those that have no label if the config drops such. A file's classes are by name, but
    for the label of a classification that lists none: the file's order of them counts."""
    task = config.task
    if isinstance(task, ImageClassificationConfig):
        rows = [with_picture(row, task.image, source="", number=0) for row in rows]
    elif not isinstance(task, ClassificationConfig):
        return [_named(row, None) for row in rows] if isinstance(task, OWN_SECTIONS) else list(rows)
    if config.data.drop_unlabelled:
        rows = [row for row in rows if has_label(row, task.label)]
    return [_named(row, task.label if task.labels is None else None) for row in rows]


def _named(row: Row, label: str | None) -> Row:
    names = {c: _name(v) for c, v in row.items() if c != label and _has_classes(v)}
    return like(row, {**row, **names}) if names else row


def _has_classes(value: object) -> bool:
    return any(isinstance(item, ClassId) for item in (value if isinstance(value, list) else [value]))


def _name(value: object) -> object:
    if isinstance(value, list):
        return [_name(item) for item in value]
    return str(value) if isinstance(value, ClassId) else value
