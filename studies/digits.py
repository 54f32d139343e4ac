"""Images and a base that need no download: scikit-learn's digits, and a tiny ViT trained on half of them.

    python studies/digits.py OUT                                  about a minute on one core
    fedsb compare recipes/small/digits.yaml --methods fed-sb,ravan,fedit --seeds 0,1,2

The ViT is trained on the digits 0 to 4 alone, centrally; OUT/train and OUT/test hold the digits 5 to 9, a
subfolder for each, which it has not seen. Leaves also OUT/model, without its head. The digits are 8 x 8 with
17 grey levels (Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

SIZE, PATCH, SEEN = 32, 8, 5
"""Pixels that images are scaled to; pixels of a patch; digits below it train the base."""


def images_of(pixels: np.ndarray) -> list[Image.Image]:
    """(n, 8, 8) grey levels of 0 to 16 as images."""
    return [Image.fromarray(image) for image in (pixels * (255 / 16)).round().astype(np.uint8)]


def processor() -> Any:
    """What scales the images and makes -1 to 1 of their colours."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def tiny_vit() -> Any:
    """A vision transformer of four layers and 0.2 M parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    body = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIZE, patch_size=PATCH, num_labels=SEEN, initializer_range=0.05, **body, **dropout
        )
    )


def pretrain(model: Any, images: list[Image.Image], labels: np.ndarray, epochs: int) -> float:
    """Train the whole model; its accuracy on the tenth that it was not trained on."""
    prepare, targets = processor(), torch.as_tensor(labels)
    inputs = prepare([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held, rest = order.tensor_split([len(images) // 10])
    steps = epochs * -(-len(rest) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for epoch in range(epochs):
        drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(epoch))
        for batch in rest[drawn].split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(pixel_values=inputs[batch]).logits, targets[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        right = model.eval()(pixel_values=inputs[held]).logits.argmax(-1) == targets[held]
    return float(right.float().mean())


def write(folder: Path, images: list[Image.Image], labels: np.ndarray) -> None:
    """A PNG for each image, in its label's subfolder."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    print(f"{folder}: {len(images)} images")


def main(arguments: list[str] | None = None) -> None:
    """Train the base and write it and the images that it has not seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=30, help="of the base's training")
    parser.add_argument("--test", type=int, default=300, help="images of the digits 5 to 9 kept for the test")
    asked = parser.parse_args(arguments)
    digits = load_digits()
    images, labels = images_of(digits.images), digits.target
    seen = [i for i, label in enumerate(labels) if label < SEEN]
    model = tiny_vit()
    accuracy = pretrain(model, [images[i] for i in seen], labels[seen], asked.epochs)
    print(f"base: {accuracy:.3f} on digits 0 to 4 that it was not trained on")
    model.vit.save_pretrained(asked.out / "model")
    processor().save_pretrained(asked.out / "model")
    other = np.random.default_rng(0).permutation([i for i, label in enumerate(labels) if label >= SEEN])
    for name, part in (("test", other[: asked.test]), ("train", other[asked.test :])):
        write(asked.out / name, [images[i] for i in part], labels[part])


if __name__ == "__main__":
    main()
