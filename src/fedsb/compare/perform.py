"""One run of a comparison: its rounds, then its benchmarks if it is to answer them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

from fedsb.common.child import read_frame, standard_output, write_frame
from fedsb.common.files import read_jsonl
from fedsb.compare.progress import OneRun
from fedsb.config import RunConfig
from fedsb.errors import FedsbError, explain
from fedsb.privacy.ledger import LEDGER, paid_after, read_spends

NO_HOOKS: Mapping[str, Any] = MappingProxyType({})


def perform(
    config: RunConfig, folder: Path, watcher: OneRun, *, asks: bool, hooks: Mapping[str, Any] = NO_HOOKS
) -> str | None:
    """Do what is not done; None, or why it failed.

    A started run is resumed after its last finished round. A private one that was stopped in a round that
    was charged begins again. hooks: functions for `fedsb.run`, by its names for them.
    """
    from fedsb.runner import run
    from fedsb.runner.evaluate import evaluate_run
    from fedsb.runner.folder import finished_summary

    try:
        if finished_summary(folder) is None:
            if aside := _set_aside(folder):
                watcher.stage(f"stopped in a round it was charged for: begun again; {aside.name} is kept")
            run(config, folder, resume=(folder / "config.yaml").is_file(), progress=watcher, **hooks)
            gc.collect()  # the run's model, before another is loaded
        if asks:
            evaluate_run(folder, watcher)
    except Exception as error:
        return explain(error)
    return None


def _set_aside(folder: Path) -> Path | None:
    """Rename the folder of a run that was charged for a round it did not finish; the new place, else None.

    With what is left of its budget it would train less than the runs it is compared with, so it is to begin
    again. What it was charged stays written in the folder set aside.
    """
    lines = read_jsonl(folder / "metrics.jsonl")
    if not paid_after(read_spends(folder / LEDGER), lines):
        return None
    places = (folder.with_name(f"stopped-{n}-{folder.name}") for n in count(1))
    place = next(place for place in places if not place.exists())
    return folder.rename(place)


def main() -> None:
    """Do the run that the first frame asks for, telling of it; end at once when standard input closes."""
    answers, request = standard_output(), read_frame(sys.stdin.buffer)
    if request is None:
        return
    Thread(target=_end_with_parent, daemon=True).start()
    watcher = OneRun(lambda share, text: write_frame(answers, {"share": share, "text": text}))
    write_frame(answers, {"ended": _run(request[0], watcher)})


def _run(request: dict[str, Any], watcher: OneRun) -> str | None:
    try:
        config = RunConfig.from_dict(request["config"])
    except FedsbError as error:
        return str(error)
    return perform(config, Path(request["folder"]), watcher, asks=request["asks"])


def _end_with_parent() -> None:
    """No run continues beside the command that is given again."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
