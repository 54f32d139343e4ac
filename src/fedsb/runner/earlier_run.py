"""A start from an earlier run's adapter: its factors and head as they ended, over the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsb.common.files import read_json
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.errors import InputError
from fedsb.federation.start.from_gradients import bases_down
from fedsb.federation.start.initialize import bases_kind
from fedsb.federation.state import ServerState
from fedsb.runner.arguments import heads_of, start_of
from fedsb.runner.checkpoint import RunState, load_checkpoint
from fedsb.runner.prepare_data import Data
from fedsb.runner.prepare_model import BaseModel

KEY = "method.init.from_run"


def earlier_run(config: RunConfig) -> RunState | None:
    """The end of the run that the config starts from; None where it names none.

    Raises:
        InputError: no finished run is there, it was of another method, rank, heads or scale, or it changed
            its base weights.
    """
    if config.method.init.from_run is None:
        return None
    folder = Path(config.method.init.from_run)
    saved = load_checkpoint(folder / "checkpoint")
    if not (folder / "summary.json").is_file() or saved is None:
        raise InputError(
            f"{KEY}: {folder} holds no finished run with its checkpoint; name a run folder, or finish the "
            f"run: fedsb run --out {folder} --resume"
        )
    _check_method(folder, RunConfig.from_yaml(folder / "config.yaml"), config)
    if saved.state.base.total:
        raise InputError(
            f"{KEY}: the run in {folder} added to its base weights, which no adapter holds; make a base "
            f"model of it, fedsb export {folder} --format merged --dtype float32 --out BASE, and let "
            "model.path be that"
        )
    return saved


def _check_method(folder: Path, before: RunConfig, now: RunConfig) -> None:
    ours, theirs = _factors_of(now), _factors_of(before)
    if other := [f"{key}: {theirs[key]!r} -> {ours[key]!r}" for key in ours if ours[key] != theirs[key]]:
        raise InputError(
            f"{KEY}: the factors of {folder} were made for other settings; take the same, or leave from_run "
            "out:\n  " + "\n  ".join(other)
        )


def _factors_of(config: RunConfig) -> dict[str, Any]:
    """The settings that factors are made for, by key."""
    method = config.method
    scale = method_of(config).scale(method.rank, method.alpha)
    names = {"method.name": method.name, "method.options": method.options, "method.rank": method.rank}
    return names | {
        "method.heads": heads_of(config),
        "method.init.ranks": method.init.ranks,
        "method.alpha (scale)": scale,
        "task.kind": config.task.kind,
    }


def check_starts_from(
    earlier: RunState, config: RunConfig, data: Data, base: BaseModel, weights: str | None
) -> None:
    """Refuse a start over other layers, weights or classes than the earlier run's.

    Args:
        weights: digest of the base.

    Raises:
        InputError: names the key.
    """
    folder = config.method.init.from_run
    names = read_json(Path(str(folder)) / "summary.json").get("label_names")
    own_names = None if data.task.label_names is None else list(data.task.label_names)
    faults = {
        "method.targets": set(earlier.factors) != set(base.targets),
        "model.path (other weights, or another model.dtype)": earlier.started_on.get("base") != weights,
        "task.labels (other classes)": names != own_names,
    }
    if key := next((key for key, other in faults.items() if other), None):
        raise InputError(
            f"{KEY}: {key} is not that of the run in {folder}; take the same, or leave from_run out"
        )


def begin_from(earlier: RunState, config: RunConfig, record: dict[str, Any], seconds: float) -> RunState:
    """The new run before its first round. Bases made of gradients travel to every client again."""
    method, num_clients = method_of(config), config.federation.clients
    sent = method.draw is None and bases_kind(start_of(config, [[0]]), method) == "gradient"
    traffic = [bases_down(earlier.factors, num_clients)] if sent else []
    return RunState(ServerState(0, earlier.state.vector), earlier.factors, traffic, [record], {}, seconds)
