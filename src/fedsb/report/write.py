"""Write the page, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsb.common.files import write_bytes
from fedsb.errors import InputError
from fedsb.report import side_by_side
from fedsb.report.load import Run, load_run
from fedsb.report.page import build_page, one_run, plots_of
from fedsb.report.paper import write_files

LIVE_SECONDS = 5
REFRESH = '<meta http-equiv="refresh"'  # as in parts.html


def write_report(runs: Sequence[Path], out: Path, *, live: bool = False) -> Path:
    """Write one HTML page about the run folders `runs` to the file `out`, and return `out`.

    With `live` it says that the run is in progress, and a browser loads it again every few seconds. It needs
    no other file, no script and no network; the same run folders give the same bytes. An interrupted call
    leaves the old page in place.

    Raises:
        InputError: a folder is not a run folder, there is none at all, or `out` is a folder.
    """
    if not runs:
        raise InputError("runs: expected at least one run folder, found none; name the folders to report on")
    out = Path(out)
    if out.is_dir():
        inside = out / "report.html"
        raise InputError(f"{out}: expected a file name for the page, found a folder; use {inside}")
    page = build_page([load_run(Path(folder)) for folder in runs], refresh=LIVE_SECONDS if live else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, page.encode("utf-8", errors="replace"))
    return out


def write_figures(runs: Sequence[Path], folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the plots and tables of the page as files of `kinds`: those of one run into `folder`, of several
    each run's into a folder of its name there, beside those that set the runs side by side.

    Raises:
        InputError: as `write_report`, or `folder` is a file.
    """
    loaded = [load_run(Path(run)) for run in runs]
    if len(loaded) == 1:
        return _of_one(loaded[0], folder, kinds)
    written = write_files(side_by_side.figures(loaded), side_by_side.overview(loaded), folder, kinds)
    for run, label in zip(loaded, side_by_side.labels(loaded), strict=True):
        written += _of_one(run, folder / label, kinds)
    return written


def _of_one(run: Run, folder: Path, kinds: Sequence[str]) -> list[Path]:
    plots = [plot for drawn in plots_of(run, "run").values() for plot in drawn]
    return write_files(plots, one_run(run, "run", 1), folder, kinds)


def is_live(page: Path) -> bool:
    """Whether the file was written with `live`."""
    with open(page, encoding="utf-8", errors="replace") as file:
        return REFRESH in file.read(2000)


FEWEST_SECONDS = 5.0
"""Between two pages, and before the first."""
SHARE = 0.05
"""Largest part of the run's time that goes into pages."""


class LivePage:
    """`report.html` of a run in progress, from what lies in its folder: after a round, not too often."""

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
        write_report([self.folder], self.folder / "report.html", live=live)
        self._written = live
