"""Trackio: a local database, in the run folder unless TRACKIO_DIR names another. `trackio show`"""

from __future__ import annotations

import os
from collections.abc import Mapping

from fedsb.report.tracking.tracked import PROJECT, Opening


class TrackioRun:
    def __init__(self, opening: Opening):
        os.environ.setdefault("TRACKIO_DIR", str(opening.folder.resolve()))
        import trackio

        name = f"{opening.name}-{opening.id}"
        more = {"resume": "allow", "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        self._run = trackio.init(PROJECT, name=name, config=dict(opening.settings), **more)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish()
