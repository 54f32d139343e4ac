"""What a private run paid for beyond its last whole round, from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

from fedsb.privacy.ledger import LEDGER, Spend, read_spends


def paid_ahead(folder: Path) -> list[Spend]:
    """The releases of a round that is under way, or that was cut off; none without privacy."""
    last = _last_round(folder)
    return [spend for spend in read_spends(folder / LEDGER) if spend.round > last]


def _last_round(folder: Path) -> int:
    """The last whole round, 0 being the start; -1 if there is none."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return int(json.loads(lines[-1])["round"]) if lines else -1
