"""The byte ledger: what was sent, by phase, round and direction.

Rounds are measured on the serialized messages. One-time traffic of the initialization is measured where
a real message exists in the run (`measured=True`) and computed from shapes where the simulation has
no message to measure (`measured=False`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind, over all `clients` together. `round` 0 is the one-time phase."""

    round: int
    what: str
    direction: Direction
    clients: int
    bytes: int
    parameters: int
    measured: bool = True


def total_bytes(
    entries: Iterable[Traffic], *, direction: Direction | None = None, once: bool | None = None
) -> int:
    """Bytes over all entries; `once` picks the one-time phase (True) or the rounds (False)."""
    return sum(
        entry.bytes
        for entry in entries
        if direction in (None, entry.direction) and once in (None, entry.round == 0)
    )
