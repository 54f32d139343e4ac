"""What a tracker is, and how one is fed: every number of metrics.jsonl once, also over a resume.

The lines of metrics.jsonl stay the source of truth. What a tracker is given is noted first: a run
killed in between leaves a gap there rather than a number twice.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fedsb.common.files import read_json, write_json


class Tracker(Protocol):
    """An open run of some tracking library."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self, *, finished: bool) -> None: ...


class Opening(NamedTuple):
    """What a tracker is opened with.

    Attributes:
        folder: of its own, in the run folder.
        name: of the run.
        id: drawn once for this run, the same when it is resumed.
        fresh: whether nothing was given to it yet.
        settings: the run's config, flat.
    """

    folder: Path
    name: str
    id: str
    fresh: bool
    settings: Mapping[str, Any]


Open = Callable[[Opening], Tracker]
PROJECT = "fedsb"


@dataclass
class Tracked:
    """One tracker and what it was given, noted in `folder/given.json`. Opened with the first line."""

    open: Open
    folder: Path
    settings: Mapping[str, Any]

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Give it what is new in these lines of metrics.jsonl."""
        tracker = self._tracker
        for line in lines:
            numbers, step = numbers_of(line), line["round"]
            new = {name: value for name, value in numbers.items() if not self._was_given(step, name)}
            if new:
                self._note(step, numbers)
                tracker.log(new, step)

    def close(self, *, finished: bool) -> None:
        if "_tracker" in self.__dict__:
            self._tracker.close(finished=finished)

    @cached_property
    def _given(self) -> dict[str, Any]:
        file = self.folder / "given.json"
        return read_json(file) if file.exists() else {"id": secrets.token_hex(4), "round": -1, "names": []}

    @cached_property
    def _tracker(self) -> Tracker:
        self.folder.mkdir(parents=True, exist_ok=True)
        name, fresh = self.folder.parent.parent.resolve().name, self._given["round"] < 0
        return self.open(Opening(self.folder, name, self._given["id"], fresh, self.settings))

    def _was_given(self, step: int, name: str) -> bool:
        last = self._given["round"]
        return bool(step < last or (step == last and name in self._given["names"]))

    def _note(self, step: int, numbers: Mapping[str, float]) -> None:
        self._given.update({"round": step, "names": sorted(numbers)})
        write_json(self.folder / "given.json", self._given)


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's finite numbers by name; metrics as eval/NAME, lists (of clients) as their length."""
    flat = {**line, **{f"eval/{name}": value for name, value in line["eval"].items()}}
    flat = {name: len(value) if isinstance(value, list) else value for name, value in flat.items()}
    return {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and math.isfinite(value) and name != "round"
    }
