"""Where a run stands, from its folder alone: also while it runs, also on another machine's copy."""

from __future__ import annotations

import json
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.paid_ahead import paid_ahead
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.ledger import LEDGER, read_spends


def run_status(folder: Path) -> dict[str, Any]:
    """Rounds done, newest scores, bytes, epsilon, who was left out, and how old the newest line is.

    `epsilon` is of all that was paid for: also of `paid_ahead` releases of a round that is not whole.

    Raises:
        InputError: the folder holds no run, or its lines cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: holds no run (no config.yaml)")
    config, lines = RunConfig.from_yaml(folder / "config.yaml"), _lines(folder / "metrics.jsonl")
    newest, ahead = lines[-1] if lines else {}, paid_ahead(folder)
    scores: list[dict[str, float]] = [line["eval"] for line in lines if line["eval"]]
    return {
        "method": config.method.name,
        "finished": (folder / "summary.json").is_file(),
        "round": newest.get("round"),
        "rounds": config.federation.rounds,
        "eval": scores[-1] if scores else {},
        "train_loss": newest.get("train_loss"),
        "epsilon": _epsilon(folder, config, newest.get("epsilon"), {spend.client for spend in ahead}),
        "paid_ahead": len(ahead),
        "upload_bytes": sum(line["upload_bytes"] for line in lines),
        "download_bytes": sum(line["download_bytes"] for line in lines),
        "clients": newest.get("clients", []),
        "rejected": newest.get("rejected", []),
        "seconds_since": _age(folder / "metrics.jsonl"),
    }


def _epsilon(folder: Path, config: RunConfig, reported: float | None, ahead: Set[int | None]) -> float | None:
    """What the newest whole round reported, or more, where clients have paid for the next one."""
    if not ahead:
        return reported
    spends, delta = read_spends(folder / LEDGER), _delta(folder, config)
    each = ([spend.mechanism for spend in spends if spend.client == who] for who in ahead)
    return max(reported or 0.0, *(epsilon(mechanisms, delta) for mechanisms in each))


def _delta(folder: Path, config: RunConfig) -> float:
    from fedsb.check_privacy import check_delta  # loads torch, which the status of most runs can do without

    partition = json.loads((folder / "partition.json").read_text(encoding="utf-8"))
    return check_delta(config, [len(part) for part in partition["clients"].values()])


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{file}: a line is not valid JSON ({error})") from None


def _age(file: Path) -> float | None:
    return round(time.time() - file.stat().st_mtime, 1) if file.exists() else None
