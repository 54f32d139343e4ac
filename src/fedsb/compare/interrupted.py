"""Private runs of a comparison that were stopped in the middle of a round: going on cannot mend them."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from fedsb.privacy.ledger import PrivacyLedger


def set_aside(folder: Path) -> Path | None:
    """Rename the folder of a run that paid for a round it did not finish; the new place, None if it has not.

    With what is left of its budget it would train less than the runs it is compared with, so it is to begin
    anew. What it paid stays written in the folder set aside.
    """
    if not _paid_in_vain(folder):
        return None
    places = (folder.with_name(f"stopped-{n}-{folder.name}") for n in count(1))
    place = next(place for place in places if not place.exists())
    return folder.rename(place)


def _paid_in_vain(folder: Path) -> bool:
    ledger = folder / "privacy.jsonl"
    if not ledger.is_file():
        return False
    paid = max((spend.round for spend in PrivacyLedger(ledger).spends), default=-1)
    return paid > _last_round(folder)


def _last_round(folder: Path) -> int:
    """The last finished round, 0 being the start; -1 if there is none."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return int(json.loads(lines[-1])["round"]) if lines else -1
