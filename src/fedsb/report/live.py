"""The page while a run goes on: written after a round, not too often; it loads itself anew until the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FEWEST_SECONDS = 5.0
"""Between two pages, and before the first."""
SHARE = 0.05
"""Of the run's time, that may go into pages."""


class LivePage:
    """`report.html` of a run folder, from what lies in it."""

    def __init__(self, folder: Path, rounds: int):
        self.folder, self.rounds = folder, rounds
        self._next = time.monotonic() + FEWEST_SECONDS
        self._written = False

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the page, if it is time, and if the last one is not about to be written."""
        began = time.monotonic()
        if began < self._next or lines[-1]["round"] >= self.rounds:
            return
        self._write(live=True)
        ended = time.monotonic()
        self._next = ended + max(FEWEST_SECONDS, (ended - began) / SHARE)

    def close(self, *, finished: bool) -> None:
        """A run that ends before its end leaves a page that stays as it is."""
        if self._written and not finished:
            self._write(live=False)

    def _write(self, *, live: bool) -> None:
        from fedsb.report.write import write_report

        write_report([self.folder], self.folder / "report.html", live=live)
        self._written = live
