"""Read a run folder into one frozen value."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsb.common.strict_json import parse_json
from fedsb.common.strict_yaml import parse_yaml
from fedsb.errors import InputError

Scores = dict[str, dict[str, float]]
NEEDED = ("config.yaml", "metrics.jsonl")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One line of metrics.jsonl. Round 0 is the model before any training."""

    number: int
    train_loss: float | None
    eval: dict[str, float]
    upload_bytes: int
    download_bytes: int
    upload_parameters: int | None
    clients: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]  # (client, reason)
    seconds: float | None
    epsilon: float | None
    deviation: float | None = None  # of separate averages from the mean update, relative
    core_change: float | None = None  # how far the averaged core moved, over a client's learning rates
    sites: Scores = field(default_factory=dict)  # client -> its scores on rows of its own
    baselines: dict[str, Scores] = field(default_factory=dict)  # kind -> the same, of another training


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder. `summary` is None if the run did not finish."""

    name: str
    config: dict[str, Any]
    config_text: str
    rounds: tuple[Round, ...]
    summary: dict[str, Any] | None
    partition: dict[str, Any]
    scores: dict[str, Any] = field(default_factory=dict)  # of evaluation/scores.json: name -> value, low, ...
    routing: dict[str, Any] = field(default_factory=dict)  # of routing.json: how a mixture was used
    audit: dict[str, Any] = field(default_factory=dict)  # of audit.json: what was proven of epsilon
    samples: tuple[dict[str, str], ...] = ()  # a language model's answers: prompt, answer, expected


def load_run(folder: Path) -> Run:
    """Read `folder`; InputError if it is not a run folder or one of its files cannot be read."""
    _check_is_run(folder)
    text = _text(folder / "config.yaml")
    return Run(
        name=folder.resolve().name,
        config=_object(folder / "config.yaml", text, lambda text: parse_yaml(text) or {}, "YAML"),
        config_text=text,
        rounds=_rounds(folder / "metrics.jsonl"),
        summary=_optional_json(folder / "summary.json"),
        partition=_optional_json(folder / "partition.json") or {},
        scores=mapping((_optional_json(folder / "evaluation" / "scores.json") or {}).get("scores")),
        routing=_optional_json(folder / "routing.json") or {},
        audit=_optional_json(folder / "audit.json") or {},
        samples=_samples(folder / "samples.jsonl"),
    )


def number(value: object) -> float | None:
    """`value` if it is a number, else None. Truth values are not numbers."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(value: object) -> int | None:
    size = number(value)
    return int(size) if size is not None and math.isfinite(size) else None


def mapping(value: object) -> dict[str, Any]:
    """`value` with text keys if it is a mapping, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _check_is_run(folder: Path) -> None:
    expected = f"expected a run folder, which holds {' and '.join(NEEDED)}"
    if not folder.is_dir():
        there = "a file" if folder.exists() else "nothing there"
        raise InputError(f"{folder}: {expected}; found {there}; name the folder that `fedsb run` wrote")
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: {expected}; found no {' and no '.join(missing)}; {_cure(folder)}")


def _cure(folder: Path) -> str:
    runs = sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))
    if runs:
        return f"it holds the run folders {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}: name those"
    return "name the folder that `fedsb run` wrote, or run again into this one"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected a readable UTF-8 text, found: {error}; restore the file"
        ) from error


def _optional_json(path: Path) -> dict[str, Any] | None:
    return _object(path, _text(path)) if path.is_file() else None


def _object(
    place: Path | str, text: str, parse: Callable[[str], Any] = parse_json, language: str = "JSON"
) -> dict[str, Any]:
    try:
        value = parse(text)
    except ValueError as error:
        raise InputError(
            f"{place}: expected {language}, found: {error}; restore the file or run again"
        ) from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise InputError(f"{place}: expected keys and values, found a {kind}; restore the file or run again")
    return mapping(value)


def _objects(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    return [_object(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]


def _rounds(path: Path) -> tuple[Round, ...]:
    """Rounds in order. A round written twice, as a resumed run may, counts as written last."""
    text = _text(path)
    lines = text.splitlines() if text.endswith("\n") else _without_torn_end(text.splitlines())
    entries = [_round(entry, at) for at, entry in enumerate(_objects(path, lines))]
    rounds = {entry.number: entry for entry in entries}
    return tuple(rounds[n] for n in sorted(rounds))


def _samples(path: Path) -> tuple[dict[str, str], ...]:
    """The answers a run left, none if it left none."""
    lines = _text(path).splitlines() if path.is_file() else []
    return tuple({key: str(value) for key, value in entry.items()} for entry in _objects(path, lines))


def _without_torn_end(lines: list[str]) -> list[str]:
    """A run that was cut off can leave half a last line: drop it."""
    try:
        parse_json(lines[-1])
    except (IndexError, ValueError):
        return lines[:-1]
    return lines


def _round(entry: dict[str, Any], position: int) -> Round:
    at = whole(entry.get("round"))
    return Round(
        number=position if at is None else at,
        train_loss=number(entry.get("train_loss")),
        eval=_metrics(entry.get("eval")),
        upload_bytes=whole(entry.get("upload_bytes")) or 0,
        download_bytes=whole(entry.get("download_bytes")) or 0,
        upload_parameters=whole(entry.get("upload_parameters")),
        clients=tuple(str(client) for client in sequence(entry.get("clients"))),
        rejected=tuple(_rejection(item) for item in sequence(entry.get("rejected"))),
        seconds=number(entry.get("seconds")),
        epsilon=number(entry.get("epsilon")),
        deviation=number(entry.get("deviation")),
        core_change=number(entry.get("core_change")),
        sites=_sites(entry.get("sites")),
        baselines={kind: _sites(part) for kind, part in mapping(entry.get("baselines")).items()},
    )


def _metrics(values: object) -> dict[str, float]:
    measured = {name: number(value) for name, value in mapping(values).items()}
    return {name: value for name, value in measured.items() if value is not None}


def _sites(values: object) -> Scores:
    return {client: _metrics(scores) for client, scores in mapping(values).items()}


def _rejection(item: object) -> tuple[str, str]:
    if not isinstance(item, dict):
        return str(item), "no reason given"
    return str(item.get("client", "?")), str(item.get("reason") or "no reason given")
