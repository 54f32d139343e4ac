"""Who watches a run's metrics: the live page, trackers. One that fails is left out, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Watcher(Protocol):
    """Someone who is told after each round."""

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """With all lines of metrics.jsonl so far."""

    def close(self, *, finished: bool) -> None:
        """The run ends, as a whole run or before that."""


class Watchers:
    """All of them, by name. `say` takes one line about the first failure of each."""

    def __init__(self, watchers: Mapping[str, Watcher], say: Callable[[str], None]):
        self._watchers, self._say = dict(watchers), say

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._tell(lambda watcher: watcher.close(finished=kind is None))

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Tell everybody."""
        self._tell(lambda watcher: watcher.follow(lines))

    def _tell(self, how: Callable[[Watcher], None]) -> None:
        for name, watcher in list(self._watchers.items()):
            try:
                how(watcher)
            except Exception as error:
                del self._watchers[name]
                reason = " ".join(str(error).split())[:300]
                self._say(f"{name} failed ({type(error).__name__}: {reason}); the run goes on without it")
