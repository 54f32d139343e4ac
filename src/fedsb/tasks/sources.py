"""The rows that a config names, under the names by which its task calls their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedsb.config import RunConfig
from fedsb.config.sections.data import Source
from fedsb.config.sections.evaluation import BenchmarkConfig
from fedsb.config.sections.task import OWN_SECTIONS, ClassificationConfig, ImageClassificationConfig
from fedsb.errors import InputError
from fedsb.tasks import Row
from fedsb.tasks.commonsense import prepare
from fedsb.tasks.held_out import Split, hold_out
from fedsb.tasks.labels import has_label
from fedsb.tasks.pictures import with_picture
from fedsb.tasks.rows import like, read_rows, require_columns
from fedsb.tasks.rows.cells import ClassId

SOURCE = "source"
"""The column that says which of several sources a row is from."""


Told = Callable[[str], None]
"""Takes a line about how files are read."""


def _silent(note: str) -> None:
    pass


class Rows(NamedTuple):
    """A run's rows. split: where the test rows were held out from the training rows, which they were."""

    train: list[Row]
    test: list[Row]
    split: Split | None = None


def run_rows(config: RunConfig, told: Told = _silent, kept: Split | None = None) -> Rows:
    """Train and test rows as the config's data section wants them.

    kept: the split that a run began with, to use again.

    Raises:
        InputError: they cannot be read, or not be split.
    """
    rows = train_rows(config, told)
    if config.data.test is None:
        return Rows(rows, [])
    if not isinstance(config.data.test, float):
        return Rows(rows, test_rows(config, told))
    split = kept or hold_out(config, rows, train_name(config))
    if kept and len(kept.train) + len(kept.test) != len(rows):
        raise InputError(
            f"{train_name(config)}: the run held out test rows of {len(kept.train) + len(kept.test):,} rows, "
            f"and now there are {len(rows):,}; bring back what was there, or start a new run"
        )
    held = [rows[i] for i in split.test][: config.data.limit.test]
    return Rows([rows[i] for i in split.train], held, split)


def train_rows(config: RunConfig, told: Told = _silent) -> list[Row]:
    """Training rows as the config's data section has them, those to be held out included."""
    data = config.data
    sources = data.train if isinstance(data.train, dict) else {None: data.train}
    rows: list[Row] = []
    for name, source in sources.items():
        of_source = shaped(
            read_rows(source, limit=data.limit.train, encoding=data.encoding, told=told),
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


def test_name(config: RunConfig) -> str:
    """The test data's name, for errors."""
    test = config.data.test
    return train_name(config) if isinstance(test, float) else source_name(test or [])


def test_rows(config: RunConfig, told: Told = _silent) -> list[Row]:  # noqa: PT028
    """The rows of the test files that the config names."""
    data = config.data
    assert data.test is not None
    assert not isinstance(data.test, float)
    rows = shaped(
        read_rows(data.test, limit=data.limit.test, split="test", encoding=data.encoding, told=told),
        source_name(data.test),
        preparation=data.prepare.test,
        columns=data.columns.test,
        key="data.columns.test",
    )
    return labelled(config, rows)


def asked_rows(config: RunConfig, file: str) -> list[Row]:
    """The rows of a file to be labelled or answered, as the config's test rows are read; what it renames they
    may lack."""
    return as_test_rows(config, read_rows(file, split="test", encoding=config.data.encoding), file)


def as_test_rows(config: RunConfig, rows: Sequence[Row], source: str) -> list[Row]:
    """Rows that were read, in the form and under the names that the config gives its test rows."""
    data, side = config.data, "train" if isinstance(config.data.test, float) else "test"
    if (preparation := getattr(data.prepare, side)) is not None:
        rows = prepare(preparation, rows, source)
    return [_named(renamed(row, getattr(data.columns, side)), None) for row in rows]


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
