"""Batches of one shape, whatever is in them: a kernel of 16 bits rounds a row by the shape that it is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedsb.federation.local_model import Batch, Collate, Example, Losses
from fedsb.federation.training import to_device
from fedsb.tasks.task import length_of

HALVES = (torch.float16, torch.bfloat16)
NUM_EXAMPLES = "number of examples"
"""Key of a batch: how many of its rows are no filling."""
OfOneShape = tuple[Callable[[Sequence[Example], int], list[Batch]], Losses]


def computes_in_16_bits(model: nn.Module, autocast: str | None) -> bool:
    """Whether any part of a forward pass does."""
    return autocast is not None or any(p.dtype in HALVES for p in model.parameters())


def of_shape(collate: Collate, examples: Sequence[Example], rows: int, tokens: int) -> Batch:
    """The batch of these examples (at least one), padded to so many tokens, and filled up to so many rows
    with copies of the first, for the caller to leave out."""
    fill = [examples[0]] * (rows - len(examples))
    batch = collate([*examples, *fill, _stretched(examples[0], tokens)])
    return {name: tensor[:-1] for name, tensor in batch.items()}


def batches_of_one_shape(collate: Collate, losses: Losses, device: torch.device, tokens: int) -> OfOneShape:
    """As (examples, batch size) -> batches, and (model, batch) -> losses, each batch of the same shape and
    no loss of what fills it."""

    def batches(examples: Sequence[Example], batch_size: int) -> list[Batch]:
        groups = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
        return [
            to_device(of_shape(collate, group, batch_size, tokens), device)
            | {NUM_EXAMPLES: torch.tensor(len(group))}
            for group in groups
        ]

    def losses_of_examples(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != NUM_EXAMPLES}
        return losses(model, inputs)[: int(batch[NUM_EXAMPLES])]

    return batches, losses_of_examples


def _stretched(example: Example, tokens: int) -> Example:
    """An example of this length, so that the others are padded to it."""
    length = length_of(example)
    return {
        key: ((value or [0]) * tokens)[:tokens] if isinstance(value, list) and len(value) == length else value
        for key, value in example.items()
    }
