"""Experts that were trained elsewhere: PEFT's LoRA folders as cores over common bases."""

from __future__ import annotations

from fedsb.adapter import Factors
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.runner.prepare_model import BaseModel


def imported_experts(config: RunConfig, base: BaseModel) -> dict[str, Factors]:
    """B, A and the cores (E, r, r) of every target layer, in the order of `method.experts.folders`.

    Raises:
        InputError: a folder holds nothing that can be a core.
    """
    raise InputError("method.experts.folders: experts from folders are not imported yet; train them here")
