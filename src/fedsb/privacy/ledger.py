"""What was spent of the privacy budget: one line per release, on disk before the release leaves.

Nothing is ever taken back. A run that was killed and goes on repeats a round with new noise, and that round
is then in here twice, as it should be: two results of it may have been seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fedsb.errors import InputError
from fedsb.privacy.accounting import Mechanism

Phase = Literal["start", "round"]
LEDGER = "privacy.jsonl"
"""Its name in a run folder."""


@dataclass(frozen=True)
class Spend:
    """One release.

    Attributes:
        client: whose examples it is about; None if it is about the clients themselves.
        round: 0 for the start.
    """

    client: int | None
    phase: Phase
    round: int
    mechanism: Mechanism


class PrivacyLedger:
    """Spends in the order they were made, kept in a file of JSON lines."""

    def __init__(self, path: Path):
        """Open the file, or begin one.

        Raises:
            InputError: a line cannot be read.
        """
        _drop_cut_off(path)
        self.path = path
        self.spends = read_spends(path)

    def charge(self, spend: Spend) -> None:
        """Write the spend down; it is on disk when this returns."""
        fresh = not self.path.exists()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(spend) | {"mechanism": spend.mechanism._asdict()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            _sync_folder(self.path.parent)
        self.spends.append(spend)

    def mechanisms(self, client: int | None, phase: Phase | None = None) -> list[Mechanism]:
        """What this client (or the clients as such) spent, in one phase or in all."""
        return [s.mechanism for s in self.spends if s.client == client and phase in (None, s.phase)]

    def times(self, client: int | None, phase: Phase, number: int) -> int:
        """How often this release was paid for: more than once if it was repeated after a run was killed."""
        return sum((s.client, s.phase, s.round) == (client, phase, number) for s in self.spends)


def read_spends(path: Path) -> list[Spend]:
    """Those of a ledger that someone else may be writing; none if there is no file.

    A last line without its end is left out: it was cut off, or is being written, and its release has not
    left.

    Raises:
        InputError: a line cannot be read.
    """
    if not path.exists():
        return []
    try:
        return [_spend(json.loads(line)) for line in _whole_lines(path).splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: this privacy ledger cannot be read ({error}). Restore it from a copy: without it "
            "nobody can say what was spent."
        ) from None


def paid_after(spends: Iterable[Spend], last_round: int) -> list[Spend]:
    """The releases of a round that is under way or was cut off, which is not among the whole ones.

    Args:
        last_round: the last whole round, 0 being the start; -1 if there is none.
    """
    return [spend for spend in spends if spend.round > last_round]


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _drop_cut_off(path: Path) -> None:
    """So that the next line begins on its own. What stays is not written anew: a kill here loses nothing."""
    if path.exists():
        os.truncate(path, len(_whole_lines(path)))


def _spend(record: dict[str, object]) -> Spend:
    return Spend(**record | {"mechanism": Mechanism(**record["mechanism"])})  # type: ignore[arg-type]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
