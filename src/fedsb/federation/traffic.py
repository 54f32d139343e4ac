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


@dataclass
class Tally:
    """Messages of one kind of the one-time phase, counted as they travel."""

    messages: int = 0
    bytes: int = 0
    numbers: int = 0

    def add(self, size: int, numbers: int, *, messages: int = 1) -> None:
        """So many messages of `size` bytes and `numbers` numbers each."""
        self.messages += messages
        self.bytes += messages * size
        self.numbers += messages * numbers

    def entry(self, what: str, direction: Direction, clients: int) -> Traffic:
        return Traffic(0, what, direction, clients, self.bytes, self.numbers)


def total_bytes(
    entries: Iterable[Traffic], *, direction: Direction | None = None, once: bool | None = None
) -> int:
    """Bytes over all entries; `once` picks the one-time phase (True) or the rounds (False)."""
    return sum(
        entry.bytes
        for entry in entries
        if direction in (None, entry.direction) and once in (None, entry.round == 0)
    )
