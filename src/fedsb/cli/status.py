"""Where a run stands, from its folder alone: also while it runs, also on another machine's copy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fedsb.common.files import read_json, read_jsonl
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.ledger import LEDGER, Spend, paid_after, read_spends
from fedsb.report.result import site_names


def run_status(folder: Path) -> dict[str, Any]:
    """Rounds done, newest scores, bytes, epsilon, who was left out, and how old the newest line is.

    `epsilon` is of all that was charged: also of `paid_ahead` releases of a round that is not whole.

    Raises:
        InputError: the folder holds no run, or its lines cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: holds no run (no config.yaml)")
    config, lines = RunConfig.from_yaml(folder / "config.yaml"), read_jsonl(folder / "metrics.jsonl")
    newest, spends = lines[-1] if lines else {}, read_spends(folder / LEDGER)  # in this order: none is missed
    ahead = paid_after(spends, lines)
    scores: list[dict[str, float]] = [line["eval"] for line in lines if line["eval"]]
    return {
        "method": config.method.name,
        "finished": (folder / "summary.json").is_file(),
        "round": newest.get("round"),
        "rounds": config.federation.rounds,
        "eval": scores[-1] if scores else {},
        "train_loss": newest.get("train_loss"),
        "epsilon": _epsilon(folder, config, newest.get("epsilon"), spends, ahead),
        "paid_ahead": len(ahead),
        "upload_bytes": sum(line["upload_bytes"] for line in lines),
        "download_bytes": sum(line["download_bytes"] for line in lines),
        "clients": newest.get("clients", []),
        "rejected": newest.get("rejected", []),
        "sites": site_names(folder),
        "seconds_since": _age(folder / "metrics.jsonl"),
    }


def _epsilon(
    folder: Path, config: RunConfig, reported: float | None, spends: list[Spend], ahead: list[Spend]
) -> float | None:
    """What the newest whole round reported, or more, where clients were charged for the next one."""
    if not ahead:
        return reported
    delta, clients = _delta(folder, config), {spend.client for spend in ahead}
    each = ([spend.mechanism for spend in spends if spend.client == client] for client in clients)
    return max(reported or 0.0, *(epsilon(mechanisms, delta) for mechanisms in each))


def _delta(folder: Path, config: RunConfig) -> float:
    from fedsb.config.privacy_checks import check_delta  # loads torch, which most runs' status never needs

    file = folder / "partition.json"
    try:
        record = read_json(file)  # a private run's file has counts alone
        sizes = list(map(int, record.get("owners", record["clients"]).values()))
    except (InputError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{file}: needed for the epsilon of an unfinished round, and cannot be read ({error})"
        ) from None
    return check_delta(config, sizes)


def _age(file: Path) -> float | None:
    return round(time.time() - file.stat().st_mtime, 1) if file.exists() else None
