"""Several examples in one row, each of which sees itself alone: less filling, and the losses of rows apart.

Positions that begin again part them. transformers makes the mask of that, for sliding windows too, if it is
given no other mask and keeps no cache; whether a model follows it is tried out before a run
(`fedsb.runner.trial`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.tasks.answers import IGNORED
from fedsb.tasks.task import Batch, Example, Task, device_of, pad, pad_token_id


def packed(task: Task, tokenizer: Any, *, width: int = 0) -> Task:
    """The task, one whose examples have `labels` for their tokens, with its batches packed.

    Args:
        width: tokens of a row; at least those of a batch's longest example.
    """
    return replace(task, collate=partial(_collate, tokenizer, width=width), losses=_losses)


def rows_of(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Indices of the examples of each row, none of which has more than `width` tokens: first fit, the longest
    first (Johnson 1973)."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, free in enumerate(room) if free >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def _collate(tokenizer: Any, examples: Sequence[Example], *, width: int) -> Batch:
    """input_ids, positions, labels and owners (the example of each token), each (rows, tokens); learnt, how
    many tokens of each example are."""
    lengths = [len(example["input_ids"]) for example in examples]
    rows = rows_of(lengths, max([width, *lengths]))
    labels = [[IGNORED, *example["labels"][1:]] for example in examples]  # of the token before it is none

    def joined(parts: Sequence[Sequence[int]], filling: int) -> Tensor:
        return pad([[value for i in row for value in parts[i]] for row in rows], filling)

    return {
        "input_ids": joined([example["input_ids"] for example in examples], pad_token_id(tokenizer)),
        "positions": joined([range(length) for length in lengths], 0),
        "labels": joined(labels, IGNORED),
        "owners": joined([[i] * length for i, length in enumerate(lengths)], 0),
        "learnt": torch.tensor([sum(label != IGNORED for label in of_one) for of_one in labels]),
    }


def packed_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits for a packed batch, (rows, tokens, vocabulary), in the model's dtype."""
    device = device_of(model)
    ids, positions = batch["input_ids"].to(device), batch["positions"].to(device)
    logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits


def _losses(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """As the task's own: the mean over each example's learnt tokens, in the examples' order."""
    logits = packed_logits(model, batch)[:, :-1]
    targets, owners = (batch[name].to(logits.device)[:, 1:] for name in ("labels", "owners"))
    counts, trained = batch["learnt"].to(logits.device), targets != IGNORED
    nll = F.cross_entropy(logits[trained].float(), targets[trained], reduction="none")
    return torch.zeros(len(counts), device=nll.device).index_add(0, owners[trained], nll) / counts.clamp(
        min=1
    )
