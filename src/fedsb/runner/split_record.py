"""Which rows a run held out to test, in its folder: what resumes or scores it holds out the same."""

from __future__ import annotations

import json
from pathlib import Path

from fedsb.common.files import read_json, write_json
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.runner.private_state import PRIVATE, write_privately
from fedsb.tasks.held_out import Split

SPLIT = "split.json"
OF_THE_SPLIT = {"train", "test", "group", "split_seed", "encoding", "prepare", "columns", "drop_unlabelled"}


def write_split(folder: Path, config: RunConfig, split: Split | None) -> None:
    """The places of the rows of each side, from 0, in the order in which they are read; of a private run for
    its owner alone."""
    if split is None:
        return
    if config.privacy is None:
        write_json(folder / SPLIT, split._asdict())
    else:
        write_privately(folder / PRIVATE / SPLIT, json.dumps(split._asdict()).encode())


def kept_split(folder: Path, config: RunConfig) -> Split | None:
    """The split that the run in this folder began with; None where it held no rows out.

    Args:
        config: what is to be read now, the run's own or another.

    Raises:
        InputError: it holds out a share of other rows, so that the run may have been trained on them; or the
            file is not whole.
    """
    file = folder / (SPLIT if config.privacy is None else f"{PRIVATE}/{SPLIT}")
    if not isinstance(config.data.test, float) or not (folder / "config.yaml").is_file():
        return None
    own = RunConfig.from_yaml(folder / "config.yaml")
    if not _same_rows(own, config):
        raise InputError(
            "data.test: a share of other rows than the run's own, which it may have been trained on; name a "
            "file of test rows, or leave data as the run has it"
        )
    return _read(file)


def _same_rows(own: RunConfig, config: RunConfig) -> bool:
    one, other = (c.with_absolute_paths().data.model_dump(include=OF_THE_SPLIT) for c in (own, config))
    return one == other and own.data.limit.train == config.data.limit.train


def _read(file: Path) -> Split:
    if not file.is_file():
        raise InputError(f"{file}: this run held out test rows, and the file that says which is gone")
    record = read_json(file)
    train, test = record.get("train"), record.get("test")
    places = [*train, *test] if isinstance(train, list) and isinstance(test, list) else []
    if not all(type(i) is int for i in places) or sorted(places) != list(range(len(places))) or not places:
        raise InputError(f"{file}: expected train and test, each row in one of them; restore it from a copy")
    return Split(train, test)  # type: ignore[arg-type]
