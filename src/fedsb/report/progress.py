"""What a run tells whoever watches: the events, and a watcher that ignores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Progress(Protocol):
    """Called from the run as things happen. Counts are of examples."""

    def stage(self, text: str) -> None:
        """One line about what comes next."""

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None: ...

    def client_begins(self, client: int, num_examples: int) -> None: ...

    def step(self, num_examples: int) -> None: ...

    def client_ends(self, client: int, problem: str | None) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def round_ends(self, record: dict[str, Any]) -> None:
        """With the round's line of metrics.jsonl; also for round 0."""


class Silent:
    """Ignores every event."""

    def stage(self, text: str) -> None: ...

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None: ...

    def client_begins(self, client: int, num_examples: int) -> None: ...

    def step(self, num_examples: int) -> None: ...

    def client_ends(self, client: int, problem: str | None) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def round_ends(self, record: dict[str, Any]) -> None: ...
