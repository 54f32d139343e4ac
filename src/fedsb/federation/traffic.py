"""The byte ledger: what was sent, by phase, round and direction.

Rounds are measured on the serialized messages. One-time traffic of the initialization is measured where
a real message exists in the run (`measured=True`) and computed from shapes where the simulation has
no message to measure (`measured=False`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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


@dataclass
class Ledger:
    """All entries of a run, in order."""

    entries: list[Traffic] = field(default_factory=list)

    def add(self, entry: Traffic) -> None:
        self.entries.append(entry)

    def total_bytes(self, *, direction: Direction | None = None, once: bool | None = None) -> int:
        """Bytes over all entries; `once` picks the one-time phase (True) or the rounds (False)."""
        return sum(
            e.bytes
            for e in self.entries
            if (direction is None or e.direction == direction) and (once is None or (e.round == 0) == once)
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(e) for e in self.entries]

    @staticmethod
    def from_json(entries: list[dict[str, Any]]) -> Ledger:
        return Ledger([Traffic(**e) for e in entries])
