"""The section `model`: the base model, and where it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from fedsb.config.base import Section


class ModelConfig(Section):
    path: str
    """Hub id or folder of the base model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen base. Bases and cores are float32 always."""
    load_in_4bit: bool = False
    """Keep the base in 4 bits (needs bitsandbytes and a device it works on)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    device_map: Literal["auto"] | None = None
    """auto: spread one model over all visible GPUs, block by block; null: the whole model on `device`."""
    check_memory: bool = True
    """Refuse a run that by the estimate (`fedsb doctor` shows it) does not fit; false: try all the same."""

    @model_validator(mode="after")
    def _one_place(self) -> ModelConfig:
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device_map takes all visible GPUs; leave device at auto, or device_map out")
        return self
