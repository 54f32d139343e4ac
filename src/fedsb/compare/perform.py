"""One run of a comparison: its rounds, then its benchmarks if it is to answer them."""

from __future__ import annotations

import gc
from pathlib import Path

from fedsb.compare.progress import OneRun
from fedsb.config import RunConfig
from fedsb.errors import FedsbError


def perform(config: RunConfig, folder: Path, watcher: OneRun, *, asks: bool) -> str | None:
    """Do what is not done; None, or why it failed.

    A started run goes on after its last finished round. A private one that was stopped in a round it had paid
    for begins anew.
    """
    from fedsb.compare.interrupted import set_aside
    from fedsb.runner import run
    from fedsb.runner.evaluate import evaluate_run
    from fedsb.runner.folder import finished_summary

    try:
        if finished_summary(folder) is None:
            if aside := set_aside(folder):
                watcher.stage(f"stopped in a round it had paid for: begun anew; {aside.name} is kept")
            run(config, folder, resume=(folder / "config.yaml").is_file(), progress=watcher)
            gc.collect()  # the run's model, before another is loaded
        if asks:
            evaluate_run(folder, watcher)
    except Exception as error:
        return explain(error)
    return None


def explain(error: Exception) -> str:
    return str(error) if isinstance(error, FedsbError) else f"{type(error).__name__}: {error}"
