"""TensorBoard: event files in the run folder. `tensorboard --logdir RUN/tracking/tensorboard`"""

from __future__ import annotations

import json
from collections.abc import Mapping

from fedsb.report.tracking.tracked import Opening


class TensorboardRun:
    def __init__(self, opening: Opening):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(opening.folder))
        if opening.fresh:
            self._writer.add_text("config", f"```\n{json.dumps(dict(opening.settings), indent=1)}\n```")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()
