"""Private runs of a comparison that were stopped in the middle of a round: going on cannot mend them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from fedsb.common.files import read_jsonl
from fedsb.privacy.ledger import LEDGER, paid_after, read_spends


def set_aside(folder: Path) -> Path | None:
    """Rename the folder of a run that paid for a round it did not finish; the new place, None if it has not.

    With what is left of its budget it would train less than the runs it is compared with, so it is to begin
    anew. What it paid stays written in the folder set aside.
    """
    rounds = [line["round"] for line in read_jsonl(folder / "metrics.jsonl")]
    if not paid_after(read_spends(folder / LEDGER), max(rounds, default=-1)):
        return None
    places = (folder.with_name(f"stopped-{n}-{folder.name}") for n in count(1))
    place = next(place for place in places if not place.exists())
    return folder.rename(place)
