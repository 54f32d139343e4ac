"""A folder with a subfolder of images for each label, as torchvision and `datasets` read it."""

from itertools import zip_longest
from pathlib import Path

from fedsb.tasks.rows.find import is_rows_file

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
"""Endings of the files that are taken; others are passed over."""
Raw = dict[str, object]


def labelled_images(folder: Path) -> list[Raw]:
    """A row for each image: `image`, its path in the folder, and `label`, its subfolder's name.

    One image of each label in turn, in sorted order, so that the first rows are of all labels. None where the
    folder has files of rows, or no subfolder with images.
    """
    if not folder.is_dir() or any(is_rows_file(entry) for entry in folder.iterdir()):
        return []
    labels = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    columns = [_images(label) for label in labels]
    return [row for turn in zip_longest(*columns) for row in turn if row is not None]


def _images(label: Path) -> list[Raw]:
    files = sorted(p for p in label.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    return [{"image": f"{label.name}/{file.name}", "label": label.name} for file in files]
