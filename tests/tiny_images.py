"""Tiny models of images with their processors, and images of one colour each, which is their label."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

SIZE = 16
COLOURS = {"blue": (20, 20, 220), "green": (20, 200, 20), "red": (220, 20, 20)}
BODY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": SIZE, "patch_size": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTConfig", BODY | PATCHES),
    "deit": ("DeiTConfig", BODY | PATCHES),
    "swin": (
        "SwinConfig",
        {"image_size": SIZE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
        | {"window_size": 4},
    ),
    "clip": (
        "CLIPConfig",
        {"vision_config": BODY | PATCHES, "projection_dim": 8}
        | {"text_config": BODY | {"vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2}},
    ),
}


def save_family(folder: Path, name: str = "vit") -> Path:
    """A base model without a head, and an image processor."""
    kind, arguments = FAMILIES[name]
    torch.manual_seed(3)
    config = getattr(transformers, kind)(**arguments, initializer_range=0.2)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    processor = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil
    processor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def picture(label: str, seed: int, size: int = 12) -> Image.Image:
    """An image of the label's colour with some noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(COLOURS[label]) + noise, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder: Path, each: int, *, first: int = 0) -> Path:
    """A subfolder with so many images for each label."""
    for label in COLOURS:
        (folder / label).mkdir(parents=True)
        for i in range(first, first + each):
            picture(label, i).save(folder / label / f"{i}.png")
    return folder
