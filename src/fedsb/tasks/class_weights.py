"""Weights of classes in the training loss. Metrics, and the loss that is reported of test rows, have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedsb.errors import InputError
from fedsb.tasks.task import Batch, Row, Task

UNEVEN = 3.0
"""Examples of the largest class over those of the smallest from which it is worth a word."""


def with_class_weights(task: Task, weights: str | Mapping[str, float] | None, rows: Sequence[Row]) -> Task:
    """The task with each example's loss times its class's weight.

    Args:
        weights: a number for each class, or "balanced": n / (k n_c) for a class with n_c of the n training
            rows, of k classes (King and Zeng 2001), so that their mean over the rows is one.
        rows: the training rows of all clients.

    Raises:
        InputError: the task has no classes, or another set of them.
    """
    if weights is None:
        return task
    if task.label_names is None or task.partition_label is None:
        raise InputError("training.class_weights: this task has no classes; leave them out")
    if isinstance(weights, str):
        factors = balanced(counts(task, rows), task.label_names)
    else:
        factors = _listed(weights, task.label_names)

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        each: Tensor = task.losses(model, batch)
        return each * torch.tensor(factors, device=each.device)[batch["labels"].to(each.device)]

    return replace(task, losses=losses)


def counts(task: Task, rows: Sequence[Row]) -> dict[str, int]:
    """Rows of each class, in the order of the classes."""
    assert task.partition_label is not None
    held = Counter(map(task.partition_label, rows))
    return {name: held.get(name, 0) for name in task.label_names or ()}


def balanced(held: Mapping[str, int], names: Sequence[str]) -> list[float]:
    """The weight of each class; 1 of one without a row."""
    present = sum(count > 0 for count in held.values())
    total = sum(held.values())
    return [total / (present * held[name]) if held[name] else 1.0 for name in names]


def _listed(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    missing, unknown = set(names) - set(weights), sorted(set(weights) - set(names))
    if missing or unknown:
        others = f" ({', '.join(unknown[:5])})" if unknown else ""
        raise InputError(
            f"training.class_weights: expected a number for each of the {len(names)} classes; {len(missing)} "
            f"have none, and {len(unknown)} of the names given{others} are no class"
        )
    return [float(weights[name]) for name in names]


def uneven(held: Mapping[str, int]) -> Iterator[str]:
    """A line where some class has many times the rows of another."""
    most, least = max(held.values(), default=0), min(held.values(), default=0)
    if len(held) > 1 and most >= UNEVEN * max(least, 1):
        yield (
            f"classes are uneven, from {least:,} to {most:,} training rows each: accuracy favours the larger "
            "(task.metric: macro_f1 does not), training.class_weights weighs them"
        )
