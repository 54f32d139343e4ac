"""What a run tells whoever watches: the events, and a watcher that ignores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Progress(Protocol):
    """Called from the run as things happen. Counts are of examples."""

    def sites(self, names: Sequence[str]) -> None:
        """What clients are called, by their numbers; none where they have no names."""

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

    def sites(self, names: Sequence[str]) -> None: ...

    def stage(self, text: str) -> None: ...

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None: ...

    def client_begins(self, client: int, num_examples: int) -> None: ...

    def step(self, num_examples: int) -> None: ...

    def client_ends(self, client: int, problem: str | None) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def round_ends(self, record: dict[str, Any]) -> None: ...


def counted(total: int, tell: Callable[[int, int], None]) -> Callable[[int], None]:
    """A function that adds up what it is told is done, and tells (done, total)."""
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done = min(done + more, total)
        tell(done, total)

    return report


class Watcher(Protocol):
    """Someone who is told after each round: the live page, trackers."""

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """With all lines of metrics.jsonl so far."""

    def close(self, *, finished: bool) -> None:
        """The run ends, as a whole run or before that."""


class Watchers:
    """All, by name. One that fails is left out, `say` takes a line about it, and the run continues."""

    def __init__(self, watchers: Mapping[str, Watcher], say: Callable[[str], None]):
        self._watchers, self._say = dict(watchers), say

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._tell(lambda watcher: watcher.close(finished=kind is None))

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Tell everybody."""
        self._tell(lambda watcher: watcher.follow(lines))

    def _tell(self, event: Callable[[Watcher], None]) -> None:
        for name, watcher in list(self._watchers.items()):
            try:
                event(watcher)
            except Exception as error:
                del self._watchers[name]
                reason = " ".join(str(error).split())[:300]
                self._say(f"{name} failed ({type(error).__name__}: {reason}); the run continues without it")
