"""Parquet and Arrow files, with the class names that the library `datasets` keeps in their schema."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsb.errors import InputError
from fedsb.tasks.rows.cells import ClassId, require_distinct

Raw = dict[str, object]


def read_parquet(path: Path, source: str) -> Iterator[Raw]:
    """The rows of a Parquet file; dictionaries by their values."""
    from pyarrow import parquet

    with _explained(source, "Parquet"), parquet.ParquetFile(path) as file:
        yield from _rows_of(file.schema_arrow, file.iter_batches(1 << 10, use_threads=False), source)


def read_arrow(path: Path, source: str) -> Iterator[Raw]:
    """The rows of an Arrow file (Feather is one) or stream."""
    import pyarrow

    with _explained(source, "Arrow"), pyarrow.OSFile(str(path)) as file:
        try:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            file.seek(0)
            reader = batches = pyarrow.ipc.open_stream(file)
        yield from _rows_of(reader.schema, batches, source)


def _rows_of(schema: Any, batches: Iterable[Any], source: str) -> Iterator[Raw]:
    require_distinct(schema.names, source)
    rows = (row for batch in batches for row in batch.to_pylist())
    return with_classes(rows, _class_names(schema), source)


@contextmanager
def _explained(source: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError) as error:
        raise InputError(
            f"{source}: not a whole {kind} file, or with values that Python has no type for "
            f"({type(error).__name__}); write it again"
        ) from error


def with_classes(rows: Iterable[Raw], names: Mapping[str, Sequence[str]], source: str) -> Iterator[Raw]:
    """The rows with the class names of these columns, of lists too; -1, the mark for "none", becomes None.

    Raises:
        InputError: a number beyond the names.
    """
    ids = {column: [*ClassId.of(of_column), None] for column, of_column in names.items()}
    for number, row in enumerate(rows, start=1):
        for column, of_column in ids.items():
            value = row.get(column)
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(n, int) and not -1 <= n < len(of_column) - 1 for n in numbers):
                raise InputError(
                    f"{source}: row {number}: column {column!r} has {len(of_column) - 1} class names and "
                    "a number beyond them; write the file again"
                )
            named = [of_column[n] if isinstance(n, int) else n for n in numbers]
            row[column] = named if isinstance(value, list) else named[0]
        yield row


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names by column; none where the schema's own say has another form than `datasets` gives it."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        inner = {name: _inner(f) for name, f in features.items()}
        labels = {name: f["names"] for name, f in inner.items() if f.get("_type") == "ClassLabel"}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}
    return {name: [str(item) for item in names] for name, names in labels.items() if isinstance(names, list)}


def _inner(feature: Any) -> Any:
    """What a feature is, or what the items of a list are."""
    item = feature[0] if isinstance(feature, list) else feature.get("feature")
    return item if isinstance(item, Mapping) else feature
