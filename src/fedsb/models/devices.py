"""Where a model can go: the CPU, or the GPUs that this process sees."""

from __future__ import annotations

import torch

from fedsb.errors import InputError


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one."""
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
