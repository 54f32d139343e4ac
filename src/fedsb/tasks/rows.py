"""Rows from a file or the hub, and checked access to their columns.

A row is a dict from column name to value. Every way the input can be wrong ends in one `InputError` that
names the source, and the line or row where there is one. Lines and rows are counted from 1.

    .jsonl .jsonl.gz     one object per line; blank lines are skipped
    .json .json.gz       an array of objects, or {"data": [objects]}
    .csv .tsv            header line; quoted cells may hold newlines; see `_read_delimited` for the types
    .parquet
    owner/name           a data set of the hub; also owner/name:config, owner/name:config@split

Importing this module is cheap: pyarrow and datasets are imported by the readers that need them.
"""

import difflib
import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from fedsb.common.strict_json import is_text, parse_json
from fedsb.errors import InputError
from fedsb.tasks.chat import chat_refusal

Rows = list[dict[str, object]]

_HUB_ID = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[^@:/]+))?(?:@(?P<split>[^@/]+))?", re.ASCII
)
LONGEST_LINE = 1 << 24
"""Characters of one row in a file of JSON lines."""
_HUB_FORM = "owner/name, owner/name:config or owner/name:config@split"


def read_rows(source: str, *, limit: int | None = None, split: str = "train") -> Rows:
    """The rows of a local file, or of a hub data set when `source` is no path.

    limit: only the first so many rows, in the order of the file. What lies behind them is not checked.
    split: the hub split to read where `source` does not end in @split. Files have no splits: ignored there.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: the row limit must be 1 or more, or null for all rows; got {limit}")
    path = _local_path(source)
    rows = _read_hub(source, limit, split) if path is None else _read_file(path, source, limit)
    if not rows:
        raise InputError(f"{source}: expected at least one row, found none; give a file that holds data")
    return rows


def require_columns(
    rows: Sequence[Mapping[str, object]], columns: Iterable[str], *, source: str, key: str = "task"
) -> None:
    """Check that each column occurs in some row. key: the config key to name in the error."""
    existing = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    for column in columns:
        if column not in existing:
            raise InputError(
                f"{source}: {key} names the column {column!r}, which is not there; "
                f"the columns are {_listed(existing)}{_suggestion(column, existing)}; "
                f"fix {key} in the config"
            )


def is_missing(value: object) -> bool:
    """None, or the not-a-number that tables use for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def cell_text(row: Mapping[str, object], column: str, *, source: str, number: int) -> str:
    """One cell as text: strings unchanged, booleans as JSON spells them, numbers and dates by str().

    number: the row's number, from 1, for the error.
    """
    value = row.get(column)
    if is_missing(value):
        raise InputError(
            f"{source}: row {number} has no value in column {column!r}; fill it or remove the row"
        )
    if isinstance(value, (bytes, list, tuple, dict)):
        raise InputError(
            f"{source}: row {number}, column {column!r}: expected text or a number, "
            f"got {chat_refusal(value) or f'{_kind(value)}; make it a plain string'}"
        )
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not is_text(text):
        raise InputError(
            f"{source}: row {number}, column {column!r}: half a surrogate pair, which is no text; fix the row"
        )
    return text


# Where a source lies


def _local_path(source: str) -> Path | None:
    """The file a source names; None when it names a hub data set."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{source}: expected a file, found a folder{_inside(path)}; name one file")
    if _looks_local(path) or not _HUB_ID.fullmatch(source):
        raise InputError(_not_found(path, source))
    return None


def _looks_local(path: Path) -> bool:
    known = _extension(path) in _READERS
    return known or (path.parent.is_dir() and (bool(path.suffix) or bool(_similar(path))))


def _not_found(path: Path, source: str) -> str:
    parent = path.parent
    if not parent.is_dir():
        where = f"the folder {str(parent)!r} does not exist"
    elif similar := _similar(path):
        where = f"the folder has {_listed(similar)}"
    else:
        where = "nothing there has a similar name"
    return f"{source}: no such file; {where}. Give a file ({_extensions()}) or a hub data set ({_HUB_FORM})"


def _similar(path: Path) -> list[str]:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    same_stem = [name for name in names if name.split(".")[0] == path.name.split(".")[0]]
    close = difflib.get_close_matches(path.name, names, n=3)
    return list(dict.fromkeys(close + sorted(same_stem)))[:3]


def _inside(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if _extension(entry) in _READERS)
    return f" with {_listed(names)}" if names else ""


# Files


def _read_file(path: Path, source: str, limit: int | None) -> Rows:
    reader = _READERS.get(_extension(path))
    if reader is None:
        raise InputError(
            f"{source}: expected a file that ends in {_extensions()}, got {path.suffix or 'no extension'!r}; "
            "convert or rename it"
        )
    try:
        return reader(path, source, limit)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: expected UTF-8 text, found {error.reason}; save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source}: cannot be read: {error}; check the file and its permissions") from error
    except MemoryError:
        raise InputError(f"{source}: more than fits into memory; split the file or set data.limit") from None


def _read_json_lines(path: Path, source: str, limit: int | None) -> Rows:
    with _open_text(path) as file:
        return list(itertools.islice(_objects_by_line(file, source), limit))


def _objects_by_line(file: IO[str], source: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(_lines(file), start=1):
        if len(line) > LONGEST_LINE:
            raise InputError(f"{source}: line {number} has more than {LONGEST_LINE:,} characters; cut it")
        if not line.strip():
            continue
        try:
            value = parse_json(line, any_text=True)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{source}: line {number} is not valid JSON: {error.msg} at column {error.colno}; "
                "expected one object per line"
            ) from error
        except ValueError as error:
            raise InputError(f"{source}: line {number} holds {error}; fix the row") from None
        yield _as_object(value, f"{source}: line {number}")


def _lines(file: IO[str]) -> Iterator[str]:
    """Its lines, of one that is too long only so much that this can be seen."""
    return iter(lambda: file.readline(LONGEST_LINE + 1), "")


def _read_json(path: Path, source: str, limit: int | None) -> Rows:
    with _open_text(path) as file:
        document = _parse_document(file.read(), source)
    items = document.get("data") if isinstance(document, dict) else document
    if not isinstance(items, list):
        raise InputError(
            f'{source}: expected an array of objects or {{"data": [objects]}}, got {_kind(document)}; '
            "for one object per line use the extension .jsonl"
        )
    return [_as_object(item, f"{source}: row {i}") for i, item in enumerate(items[:limit], start=1)]


def _parse_document(text: str, source: str) -> Any:
    if not text.strip():
        return []
    try:
        return parse_json(text, any_text=True)
    except json.JSONDecodeError as error:
        cure = "; for one object per line use the extension .jsonl" if error.msg == "Extra data" else ""
        raise InputError(
            f"{source}: line {error.lineno} is not valid JSON: {error.msg} at column {error.colno}{cure}"
        ) from error
    except ValueError as error:
        raise InputError(f"{source}: the document holds {error}; fix it") from None


def _read_delimited(path: Path, source: str, limit: int | None, *, delimiter: str) -> Rows:
    """CSV or TSV by pyarrow.

    A column of numbers becomes int or float, its empty cells None. All else stays the text that it is, also
    true, NA, dates and the empty string: text must reach the model as it is written.
    """
    import pyarrow
    from pyarrow import csv

    if path.stat().st_size == 0:
        return []
    read = csv.ReadOptions(use_threads=False, block_size=1 << 24)  # bytes; a row must fit
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = csv.ConvertOptions(null_values=[""], true_values=[], false_values=[])
    try:
        table = csv.read_csv(path, read, parse, convert)
        if text_columns := _not_numbers(table):
            convert.column_types = dict.fromkeys(text_columns, pyarrow.string())
            table = csv.read_csv(path, read, parse, convert)
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"{source}: {_first_line(error)}; fix the row, quote cells that hold delimiters, save as UTF-8"
        ) from error
    _require_distinct(table.column_names, source)
    return cast(Rows, table.slice(0, limit).to_pylist())


def _not_numbers(table: Any) -> list[str]:
    """Columns that pyarrow took for dates, times or nothing at all, and that are text to us."""
    from pyarrow import types

    return [
        field.name
        for field in table.schema
        if not (types.is_integer(field.type) or types.is_floating(field.type) or types.is_string(field.type))
    ]


def _require_distinct(names: Sequence[str], source: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{source}: expected distinct column names, found {_listed(twice)} twice; rename one"
        )


def _read_csv(path: Path, source: str, limit: int | None) -> Rows:
    return _read_delimited(path, source, limit, delimiter=",")


def _read_tsv(path: Path, source: str, limit: int | None) -> Rows:
    return _read_delimited(path, source, limit, delimiter="\t")


def _read_parquet(path: Path, source: str, limit: int | None) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=min(limit or 1 << 14, 1 << 14), use_threads=False)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            return list(itertools.islice(rows, limit))
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"{source}: not a whole Parquet file: {_first_line(error)}; write it again"
        ) from error


_READERS: dict[str, Callable[[Path, str, int | None], Rows]] = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


# The hub


def _read_hub(source: str, limit: int | None, split: str) -> Rows:
    """Rows of a hub data set. A class label of -1, the hub's mark for "none", becomes None."""
    match = _HUB_ID.fullmatch(source)
    assert match is not None  # _local_path has seen to it
    loaded = _load_dataset(source, match["name"], match["config"], match["split"] or split)
    if limit is not None:
        loaded = loaded.select(range(min(limit, len(loaded))))
    labels = [name for name, feature in loaded.features.items() if type(feature).__name__ == "ClassLabel"]
    return [{**row, **{name: None for name in labels if row[name] == -1}} for row in loaded]


def _load_dataset(source: str, name: str, config: str | None, split: str) -> Any:
    try:
        return _from_hub(name, config, split)
    except Exception as error:  # the library raises many kinds, none of them ours: one message for all
        raise InputError(
            f"{source}: no such local file, and the hub data set {name!r} (config {config or 'default'}, "
            f"split {split}) could not be loaded: {type(error).__name__}: {_first_line(error)}. "
            f"Check the id ({_HUB_FORM}) and the network, or give a local file ({_extensions()})"
        ) from error


def _from_hub(name: str, config: str | None, split: str) -> Any:
    """Data sets that come as a script are not run: the hub keeps a copy of theirs in tables."""
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, trust_remote_code=False)
    except RuntimeError as error:
        if "script" not in str(error).lower():
            raise
        return datasets.load_dataset(name, config, split=split, revision=_TABLES, trust_remote_code=False)


_TABLES = "refs/convert/parquet"


# Small helpers


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def _extension(path: Path) -> str:
    name = path.name.lower()
    return next((known for known in _READERS if name.endswith(known)), path.suffix.lower())


def _extensions() -> str:
    return ", ".join(_READERS)


def _as_object(value: Any, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(
            f'{where}: expected an object such as {{"text": "...", "label": 0}}, got {_kind(value)}'
        )
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", tuple: "an array", str: "a string", type(None): "null"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _suggestion(name: str, existing: Sequence[str]) -> str:
    lowered = {other.lower(): other for other in existing}
    close = difflib.get_close_matches(name.lower(), lowered, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(lowered[match]) for match in close)}?)" if close else ""
