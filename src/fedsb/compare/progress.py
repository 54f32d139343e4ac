"""What a comparison tells whoever watches, and how one run's events become part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Progress(Protocol):
    """Called in one thread as things happen. `name` is a run's; `share` of it is done, 0 to 1."""

    def stage(self, text: str) -> None:
        """One line about what comes next."""

    def begins(self, runs: int, after: int = 0) -> None:
        """So many runs more are to be done now, and so many after them."""

    def run_begins(self, name: str) -> None: ...

    def run_at(self, name: str, share: float, text: str) -> None: ...

    def run_ends(self, name: str, problem: str | None) -> None: ...


class Silent:
    """Ignores every event."""

    def stage(self, text: str) -> None: ...

    def begins(self, runs: int, after: int = 0) -> None: ...

    def run_begins(self, name: str) -> None: ...

    def run_at(self, name: str, share: float, text: str) -> None: ...

    def run_ends(self, name: str, problem: str | None) -> None: ...


class OneRun:
    """A run's own watcher: tells how much of it is done, in a few words."""

    def __init__(self, tell: Callable[[float, str], None]):
        self._tell = tell
        self._round, self._rounds, self._cohort, self._ended = 1, 1, 1, 0
        self._share = 0.0

    def sites(self, names: Sequence[str]) -> None: ...

    def stage(self, text: str) -> None:
        self._tell(self._share, text)

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        self._round, self._rounds, self._cohort, self._ended = number, rounds, max(1, len(cohort)), 0
        self._at()

    def client_begins(self, client: int, num_examples: int) -> None: ...

    def step(self, num_examples: int) -> None: ...

    def client_ends(self, client: int, problem: str | None) -> None:
        self._ended += 1
        self._at()

    def evaluating(self, done: int, total: int) -> None: ...

    def round_ends(self, record: dict[str, Any]) -> None: ...

    def _at(self) -> None:
        self._share = (self._round - 1 + self._ended / self._cohort) / self._rounds
        self._tell(self._share, f"round {self._round} of {self._rounds}")
