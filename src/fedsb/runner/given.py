"""Rows, a model and its tokenizer that a program gives as objects, written as files of the run's own folder.

    given/train-DIGEST.jsonl    rows; .parquet where they are a `datasets.Dataset`
    given/model-DIGEST/         a model and its tokenizer

The config then names these files, so that a run resumes, is exported and predicts without the program. The
digest is of the content: other objects make another config, which a run that is resumed refuses. Of a private
run the folder is `private/given`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from fedsb.common.files import finite
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models.digest import base_digest
from fedsb.runner.private_state import PRIVATE, write_privately
from fedsb.tasks import Row

GIVEN = "given"
"""The folder's name in a run folder. Only its owner may read what is in it."""
DIGITS = 12


@dataclass(frozen=True)
class Objects:
    """What is to be written into the folder that a config names.

    Attributes:
        place: the folder. files: content by path. models: (model, tokenizer) by folder.
    """

    place: Path
    files: dict[Path, bytes] = field(default_factory=dict)
    models: dict[Path, tuple[Any, Any]] = field(default_factory=dict)

    def write(self) -> None:
        """Write what is not there yet: each file, each model folder, whole or not at all."""
        for path, content in self.files.items():
            if not path.exists():
                write_privately(path, content)
        for folder, (model, tokenizer) in self.models.items():
            if not folder.exists():
                _save(folder, model, tokenizer)


def given(
    config: RunConfig | Mapping[str, Any],
    folder: Path,
    *,
    train: Any = None,
    test: Any = None,
    model: Any = None,
    tokenizer: Any = None,
) -> tuple[RunConfig, Objects]:
    """The config with these objects in their places, and the objects, of which nothing is written yet.

    Args:
        config: checked, or a nested mapping as in YAML, whose section `compare` is left out.
        train: rows, or rows by the name of their source, or paths. test: rows, paths, or a share.
        model: a transformers model, with its `tokenizer` (or image processor); or a path.

    Raises:
        InputError: the config is wrong, or an object is none of these.
    """
    values = config.model_dump(mode="json") if isinstance(config, RunConfig) else _plain(config)
    place = folder.resolve() / (PRIVATE if values.get("privacy") else "") / GIVEN
    found = Objects(place)
    places = {
        ("data", "train"): _sources(train, "train", found),
        ("data", "test"): test if isinstance(test, float) else _source(test, "test", found),
        ("model", "path"): _model(model, tokenizer, found),
    }
    for (section, key), value in places.items():
        if value is not None:
            values[section] = {**(values.get(section) or {}), key: value}
    return RunConfig.from_dict(values), found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        kind = type(config).__name__
        raise InputError(f"config: expected a RunConfig, or a dict such as {{'task': ...}}, found {kind}")
    return {key: value for key, value in config.items() if key != "compare"}


# Rows


def _sources(rows: Any, name: str, found: Objects) -> Any:
    """As `_source`; of a mapping, each source by its name."""
    if not isinstance(rows, Mapping):
        return _source(rows, name, found)
    if hasattr(rows, "num_rows"):
        raise InputError(f"{name}: found a DatasetDict; give one of its splits, e.g. {name}=data['train']")
    return {str(key): _source(of, f"{name}-{n}", found) for n, (key, of) in enumerate(rows.items(), start=1)}


def _source(rows: Any, name: str, found: Objects) -> Any:
    """The path or paths that were given, or the path of the file that is to hold the rows."""
    if rows is None:
        return None
    if isinstance(rows, str | os.PathLike):
        return os.fspath(rows)
    if isinstance(rows, list) and rows and all(isinstance(row, str | os.PathLike) for row in rows):
        return [os.fspath(path) for path in rows]
    content, ending = _content(rows, name)
    path = found.place / f"{name}-{hashlib.sha256(content).hexdigest()[:DIGITS]}{ending}"
    found.files[path] = content
    return str(path)


def _content(rows: Any, name: str) -> tuple[bytes, str]:
    """The rows as a file, and how its name ends. A Dataset keeps the names of its classes, and its images."""
    if hasattr(rows, "with_format") and hasattr(rows, "features"):
        return _parquet(rows), ".parquet"
    lines = (json.dumps(row, ensure_ascii=False, default=_as_json) for row in rows_of(rows, name))
    return "".join(f"{line}\n" for line in lines).encode(), ".jsonl"


def _parquet(rows: Any) -> bytes:
    """A Dataset's rows, as they are chosen and ordered, with the names of its classes in the schema."""
    from pyarrow import parquet

    table, buffer = rows.with_format("arrow")[:], BytesIO()
    parquet.write_table(table.replace_schema_metadata(rows.features.arrow_schema.metadata), buffer)
    return buffer.getvalue()


def rows_of(rows: Any, name: str) -> Iterator[dict[str, Any]]:
    """Each row of a list of mappings, a `datasets.Dataset` or a pandas frame as a dict.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):
        rows = rows.to_dict("records")
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        raise InputError(f"{name}: expected rows (a list of dicts, a Dataset), found {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}: row {number}: expected a dict of columns, found {type(row).__name__}")
        yield finite({str(column): value for column, value in row.items()})


def plain_rows(rows: Any, name: str) -> list[Row]:
    """The rows as a file of them would give them.

    Raises:
        InputError: as `rows_of`, or a cell is nothing that JSON has.
    """
    return [json.loads(json.dumps(row, default=_as_json)) for row in rows_of(rows, name)]


def _as_json(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own, dates as text."""
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    kind = type(value).__name__
    raise InputError(f"rows: a cell is of type {kind}; make it text, a number or a list, or give a Dataset")


# Models


def _model(model: Any, tokenizer: Any, found: Objects) -> str | None:
    """The path that was given, or the folder that is to hold model and tokenizer."""
    if model is None and tokenizer is None:
        return None
    if isinstance(model, str | os.PathLike) and tokenizer is None:
        return os.fspath(model)
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if not hasattr(value, "save_pretrained"):
            raise InputError(
                f"{name}: expected an object of transformers (model= and tokenizer= go together), or a path "
                f"as model= alone; found {type(value).__name__}"
            )
    if hasattr(model, "peft_config"):
        raise InputError("model: has an adapter of peft in it; give model.merge_and_unload(), or its base")
    folder = found.place / f"model-{_digest(model, tokenizer)}"
    found.models[folder] = (model, tokenizer)
    return str(folder)


def _digest(model: Any, tokenizer: Any) -> str:
    """Differs when a weight, the config or a file of the tokenizer does."""
    digest = hashlib.sha256(f"{base_digest(model, {})} {model.config.to_json_string()}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:DIGITS]


def _save(folder: Path, model: Any, tokenizer: Any) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder.parent, 0o700)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        with stage("model", "saving it", "give a model that save_pretrained can write, or its path"):
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
