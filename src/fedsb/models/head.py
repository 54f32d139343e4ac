"""A classification head: which parameters it has, when it is fresh, and how it stays fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.common.seeding import scoped_global_seed

CLASSIFIER = "ForSequenceClassification"
"""Ends the class names of such models, in `architectures` of a config too."""


def is_classifier(model: nn.Module) -> bool:
    """Whether the model ends in a sequence-classification head."""
    return CLASSIFIER in type(model).__name__


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters outside the pretrained base (`model.base_model`), by name."""
    base = {id(p) for p in model.base_model.parameters()}  # type: ignore[union-attr]
    return {name: p for name, p in model.named_parameters() if id(p) not in base}


def head_options(num_labels: int, label_names: Sequence[str] | None) -> dict[str, Any]:
    """What a model's config says of a head with so many outputs; one output is a regression."""
    options: dict[str, Any] = {"num_labels": num_labels}
    if num_labels == 1:
        options["problem_type"] = "regression"
    if label_names is not None:
        options["id2label"] = dict(enumerate(label_names))
        options["label2id"] = {name: i for i, name in enumerate(label_names)}
    return options


def stored_labels(config: Any) -> list[str] | None:
    """The labels that a checkpoint's head was trained for, in order; None where it has no such head."""
    if not any(CLASSIFIER in name for name in getattr(config, "architectures", None) or []):
        return None
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def keeps_head(config: Any, num_labels: int, label_names: Sequence[str] | None) -> bool:
    """Whether a checkpoint's own head is used: as many outputs and, where they have names, the same."""
    stored = stored_labels(config)
    return stored is not None and stored == list(label_names or stored) and len(stored) == num_labels


def head_note(config: Any, num_labels: int, label_names: Sequence[str] | None) -> str | None:
    """A line about a checkpoint that comes with a head of its own; None where it has none."""
    stored = stored_labels(config)
    if stored is None:
        return None
    if keeps_head(config, num_labels, label_names):
        return "the base model's own classification head is kept: its labels are those of this task"
    names = ", ".join(stored[:3]) + (", ..." if len(stored) > 3 else "")
    return (
        f"the base model's own classification head is for other labels ({len(stored)}: {names}); "
        "a fresh one takes its place"
    )


def draw_head(model: Any, *, dtype: torch.dtype, seed: int) -> None:
    """Give the model a fresh head, as its family draws one, from the seed; nothing else changes."""
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for name, old in head_parameters(model).items():
        owner, _, leaf = name.rpartition(".")
        device = "cpu" if old.is_meta else old.device
        fresh = nn.Parameter(torch.empty(old.shape, dtype=dtype, device=device))
        setattr(model.get_submodule(owner), leaf, fresh)
    base = {id(module) for module in model.base_model.modules()}
    for module in model.modules():
        module._is_hf_initialized = id(module) in base
    with scoped_global_seed(seed, "head"):
        model.initialize_weights()


def keep_in_float32(model: nn.Module) -> None:
    """Make the head fp32 over a base of another dtype, and let it take that base's outputs."""
    head = head_parameters(model)
    for parameter in head.values():
        parameter.data = parameter.data.float()
    trained = {id(parameter) for parameter in head.values()}
    for module in model.modules():
        if any(id(parameter) in trained for parameter in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_inputs_in_float32)


def _inputs_in_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
