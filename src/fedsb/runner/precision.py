"""Whether this machine computes in bfloat16, or only pretends to."""

from __future__ import annotations

import torch

from fedsb.config import RunConfig
from fedsb.models.devices import pick_device


def slow_bfloat16(config: RunConfig) -> str | None:
    """What to say where the config asks a CPU for bfloat16 that it lacks; None where all is well.

    Such a CPU (AVX2 alone, say) widens every number to float32 and rounds it back: a step took over ten times
    as long as in float32 (`LOG.md`).
    """
    if config.training.autocast == "bfloat16":
        key, instead = "training.autocast", "null"
    elif config.model.dtype == "bfloat16":
        key, instead = "model.dtype", "float32"
    else:
        return None
    if pick_device(config.model.device).type != "cpu" or cpu_has_bfloat16():
        return None
    return f"{key}: this CPU has no bfloat16 arithmetic; {key}: {instead} will be many times faster here"


def cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are done by the CPU itself."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
