"""Run a paper's table, or its small form, and set ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedsb.common.files import write_json
from fedsb.compare.comparison import Comparison, compare
from fedsb.compare.papers.page import write_page
from fedsb.compare.papers.table import Column, Form, PaperTable, RowOf, settings_of
from fedsb.compare.progress import Progress, Silent
from fedsb.config import RunConfig
from fedsb.config.yaml_file import override
from fedsb.errors import InputError
from fedsb.report.metrics import describe

DOCUMENT = "reproduction.json"


@dataclass(frozen=True)
class Inputs:
    """What the small form of a table runs on.

    Attributes:
        model: folder or hub id. data: folder of the files that the form names.
        made: whether both were made by this package.
    """

    model: str
    data: Path
    made: bool


@dataclass(frozen=True)
class Reproduction:
    """What reproduction.json holds, the folder, and the runs that failed: name and problem."""

    document: dict[str, Any]
    folder: Path
    failed: list[dict[str, Any]]


def reproduce(
    name: str,
    table: PaperTable,
    out: Path,
    *,
    inputs: Inputs | None = None,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress | None = None,
) -> Reproduction:
    """Run or resume every comparison of the table, and leave reproduction.json and report.html in `out`.

    Args:
        inputs: the small form, on these; None: the whole table.
        arms: of the table's; none: all.
        overrides: `key.path=value`, of every config.

    Raises:
        InputError: an arm is none of the table's, a file is missing, or as `compare`.
        RunFailed: as `compare`.
    """
    form: Form = table.whole if inputs is None else table.reduced
    chosen, progress = chosen_arms(table, arms), progress or Silent()
    configs = {part: config_of(form, part, overrides, inputs) for part in form.parts}
    done: dict[str, Comparison] = {}
    for number, (part, config) in enumerate(configs.items(), start=1):
        progress.stage(f"{name}, part {number} of {len(configs)}: {part}")
        settings = settings_of(form)
        done[part] = compare(config, settings, chosen, seeds, out / part, jobs=jobs, progress=progress)
    document = document_of(name, table, done, inputs, chosen, seeds)
    write_json(out / DOCUMENT, document)
    write_page(out, document)
    return Reproduction(document, out, [line for of in done.values() for line in of.failed])


def chosen_arms(table: PaperTable, arms: Sequence[str]) -> list[str]:
    """These arms of the table; all where none is named.

    Raises:
        InputError: one is none of the table's.
    """
    known = [row.arm for row in table.rows]
    unknown = [arm for arm in arms if arm not in known]
    if unknown:
        raise InputError(f"--arms: expected some of {', '.join(known)}; found {unknown[0][:80]!r}")
    return list(arms) or known


def config_of(form: Form, part: str, overrides: Sequence[str], inputs: Inputs | None) -> RunConfig:
    """The config of one of its comparisons.

    Raises:
        InputError: a file that the small form names is not there, or an override is wrong.
    """
    values = deepcopy(form.config)
    for key, value in form.parts[part].items():
        _set(values, key, value)
    if inputs is not None:
        values["model"] = {**values.get("model", {}), "path": inputs.model}
        _locate(values, inputs.data)
    return RunConfig.from_dict(override(values, overrides), source=f"part {part}")


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for key in parents:
        values = values.setdefault(key, {})
    values[leaf] = value


def _locate(values: dict[str, Any], folder: Path) -> None:
    """Put the folder before the files that the config names.

    Raises:
        InputError: one of them is not there.
    """
    benchmarks = (values.get("evaluation") or {}).get("benchmarks", {}).values()
    for section, key in (
        (values["data"], "train"),
        (values["data"], "test"),
        *((b, "data") for b in benchmarks),
    ):
        named = section[key]
        section[key] = (
            {name: _file(folder, path) for name, path in named.items()}
            if isinstance(named, Mapping)
            else _file(folder, named)
        )


def _file(folder: Path, name: str) -> str:
    if not (folder / name).exists():
        raise InputError(f"--data: {folder} has no {name}, which the small form of this table reads")
    return str(folder / name)


# What came out


def document_of(
    name: str,
    table: PaperTable,
    done: Mapping[str, Comparison],
    inputs: Inputs | None,
    arms: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """What reproduction.json holds: of each cell the paper's number, ours, its deviation over the seeds, and
    the difference."""
    rows = [row for row in table.rows if row.arm in arms]
    return {
        "table": name,
        "title": table.title,
        "source": table.source.model_dump(),
        "known": table.known,
        "unknown": table.unknown,
        "reduced": inputs is not None,
        "made": inputs is not None and inputs.made,
        "note": table.reduced.note if inputs is not None else "",
        "seeds": list(seeds),
        "columns": [column.name for column in table.columns],
        "units": [_unit(column) for column in table.columns],
        "parts": list(done),
        "rows": [
            {
                "arm": row.arm,
                "method": row.method,
                "rank": row.rank,
                "rank_here": _rank(row.arm, done),
                "cells": [_cell(row, n, column, done) for n, column in enumerate(table.columns)],
            }
            for row in rows
        ],
    }


def _unit(column: Column) -> str:
    """`accuracy, %`; empty where it is not known what the paper measured."""
    if column.metric is None:
        return ""
    return describe(column.metric).title.split(": ")[-1].lower() + (", %" if column.scale == 100 else "")


def _rank(arm: str, done: Mapping[str, Comparison]) -> int | None:
    """The arm's rank as it ran; None where no run of it was finished."""
    runs = [
        (of.folder / run["run"])
        for of in done.values()
        for run in of.document["runs"]
        if run["method"] == arm
    ]
    return RunConfig.from_yaml(runs[0] / "config.yaml").method.rank if runs else None


def _cell(row: RowOf, place: int, column: Column, done: Mapping[str, Comparison]) -> dict[str, Any]:
    paper, ours = row.cells[place], _ours(row.arm, column, done)
    middle = mean(ours) if ours else None
    return {
        "paper": paper,
        "ours": middle,
        "std": stdev(ours) if len(ours) > 1 else None,
        "difference": None if paper is None or middle is None else middle - paper,
    }


def _ours(arm: str, column: Column, done: Mapping[str, Comparison]) -> list[float]:
    """The arm's scores, seed by seed, in the paper's unit; nothing where one is not known."""
    if column.part is None or column.part not in done:
        return []
    runs = [run for run in done[column.part].document["runs"] if run["method"] == arm]
    values = [run["metrics"].get(column.metric) for run in runs]
    return [] if None in values else [column.scale * value for value in values]
