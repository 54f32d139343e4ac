"""Images to classes. A batch is `pixel_values` as the model's own image processor makes them.

An example keeps its image's file, or where it lies, and no pixels: those of a batch are made when it is asked
for. Every image is decoded once before anything expensive starts. None is changed at random.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fedsb.config.sections.task import ImageClassificationConfig
from fedsb.errors import InputError
from fedsb.tasks.classification import checked_metric
from fedsb.tasks.labels import class_ids, label_set, row_name
from fedsb.tasks.logits import class_scores, class_sums, losses, measure, of_classes
from fedsb.tasks.pictures import picture_of, rgb_of
from fedsb.tasks.rows import place, require_columns
from fedsb.tasks.task import Batch, Example, Row, Task


def image_classification_of(
    section: ImageClassificationConfig, processor: Any, rows: Sequence[Row], *, source: str, max_length: int
) -> Task:
    """The task of a config's section; the classes are those of the training rows unless it lists them.

    processor: the model's image processor. max_length: plays no part.
    """
    listed = section.labels is not None
    found = section.labels or label_set(rows, section.label, source, regression=False)[0]
    names = tuple(found or ())
    collate = partial(_collate, processor)
    return Task(
        primary_metric=checked_metric(section.metric, names),
        higher_is_better=True,
        num_labels=len(names),
        label_names=names,
        encode=partial(_encode, section.image, section.label, names, listed),
        questions=partial(_questions, section.image),
        collate=collate,
        losses=losses,
        measure=partial(measure, collate, class_scores, class_sums),
        partition_label=partial(row_name, label=section.label),
        totals=of_classes(len(names)),
    )


def _encode(
    image: str, label: str, names: tuple[str, ...], listed: bool, rows: Sequence[Row], source: str
) -> list[Example]:
    require_columns(rows, [image], source=source, key="task.image")
    require_columns(rows, [label], source=source, key="task.label")
    labels = class_ids(rows, label, names, source, listed=listed)
    return [
        _example(row, image, label_id, source, number)
        for number, (row, label_id) in enumerate(zip(rows, labels, strict=True), start=1)
    ]


def _questions(image: str, rows: Sequence[Row], source: str) -> list[Example]:
    require_columns(rows, [image], source=source, key="task.image")
    return [_example(row, image, 0, source, number) for number, row in enumerate(rows, start=1)]


def _example(row: Row, image: str, label: int, source: str, number: int) -> Example:
    picture = picture_of(row, image, source=source, number=number)
    rgb_of(picture, f"{place(row, source, number)}, column {image!r}")
    return {"image": picture, "labels": label, "content": picture.digest}


def _collate(processor: Any, examples: Sequence[Example]) -> Batch:
    """Files that were changed since they were encoded are refused.

    Raises:
        InputError: such a file, or images that the processor makes different sizes of.
    """
    from PIL import Image

    where = "an image that was read before, and is another now"
    images = [rgb_of(example["image"], where) for example in examples] or [Image.new("RGB", (8, 8))]
    try:
        pixels = processor(images, return_tensors="pt")["pixel_values"]
    except ValueError as error:
        raise InputError(
            f"model.path: its image processor does not make images of one size ({type(error).__name__}); set "
            "do_resize and size in its preprocessor_config.json"
        ) from error
    labels = torch.tensor([example["labels"] for example in examples], dtype=torch.long)
    return {"pixel_values": pixels[: len(examples)], "labels": labels}
