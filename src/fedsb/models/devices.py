"""Where a model can go: the CPU, or the GPUs that this process sees; and what a CPU is slow at."""

from __future__ import annotations

import torch

from fedsb.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device of this name; of `auto` the GPU if there is one.

    Raises:
        InputError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"model.device: cannot use {name!r} here: {str(error).splitlines()[0]}") from None
    return device


def visible_gpus() -> list[torch.device]:
    """The GPUs this process may use."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def slow_bfloat16(dtype: str, autocast: str | None, device: str) -> str | None:
    """What to say where a CPU that lacks bfloat16 is asked for it; None where all is well.

    Such a CPU (AVX2 alone, say) widens every number to float32 and rounds it back: a step took over ten times
    as long as in float32 (`LOG.md`).
    """
    if "bfloat16" not in (dtype, autocast) or pick_device(device).type != "cpu" or cpu_has_bfloat16():
        return None
    key, instead = ("training.autocast", "null") if autocast == "bfloat16" else ("model.dtype", "float32")
    return f"{key}: this CPU has no bfloat16 arithmetic; {key}: {instead} will be many times faster here"


def cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are done by the CPU itself."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
