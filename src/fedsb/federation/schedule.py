"""Learning-rate factors over the whole run, so that a new round does not restart the warm-up."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, total_steps: int, *, schedule: Schedule, warmup_ratio: float = 0.0
) -> float:
    """Factor in (0, 1] of the learning rate at `step` (from 0) of `total_steps`.

    Rises linearly over the first `warmup_ratio` of the steps, then stays, falls linearly to zero, or
    follows half a cosine. The first step's factor is above zero.

    >>> [round(learning_rate_factor(s, 4, schedule="linear", warmup_ratio=0.5), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = warmup_ratio * total_steps
    if step + 1 <= warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = max(0.0, step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
