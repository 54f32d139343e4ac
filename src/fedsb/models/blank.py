"""Inputs of a model without content, to see its shapes by; and what its config says of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsb.models.limits import text_config


def takes_images(model: Any) -> bool:
    """Whether a model is one of images; also with peft's around it."""
    return bool(getattr(model, "main_input_name", "") == "pixel_values")


def blank_inputs(model: Any, rows: int, tokens: int, device: torch.device | str) -> dict[str, Tensor]:
    """Zeros for a model: so many rows of so many tokens, or of images of the size it was made for."""
    if not takes_images(model):
        return {"input_ids": torch.zeros(rows, tokens, dtype=torch.long, device=device)}
    config = vision_config(model.config)
    size = getattr(config, "num_channels", 3), *_pair(config.image_size)
    dtype = next(model.parameters()).dtype
    return {"pixel_values": torch.zeros(rows, *size, dtype=dtype, device=device)}


def body_config(model: Any) -> Any:
    """The part of a model's config that is about what it classifies or continues: images or texts."""
    return vision_config(model.config) if takes_images(model) else text_config(model.config)


def vision_config(config: Any) -> Any:
    """The part of a model's config that is about images."""
    return getattr(config, "vision_config", config)


def num_patches(model: Any) -> int:
    """How many places the first layers see of an image, its class token included."""
    config = vision_config(model.config)
    sides = zip(_pair(config.image_size), _pair(config.patch_size), strict=True)
    height, width = (size // patch for size, patch in sides)
    return int(height * width) + 1


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) of a number or of both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
