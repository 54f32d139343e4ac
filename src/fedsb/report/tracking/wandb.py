"""Weights & Biases: offline, in the run folder, unless WANDB_MODE asks for more; see `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fedsb.report.tracking.tracked import PROJECT, Opening


class WandbRun:
    def __init__(self, opening: Opening):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=opening.name,
            id=opening.id,
            resume="allow",
            dir=str(opening.folder),
            config=dict(opening.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
