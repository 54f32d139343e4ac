"""What a model ends in: its class in transformers; a classification head's parameters, labels, dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.common.seeding import scoped_global_seed

CAUSAL, SEQUENCE, TOKEN, IMAGE = (
    "CausalLM",
    "SequenceClassification",
    "TokenClassification",
    "ImageClassification",
)
"""Names of model classes: what follows AutoModelFor. A family's own end in For and the same name, in
`architectures` of a config too (Longformer's and DeiT's with more behind it)."""
CLASSIFIERS = (SEQUENCE, TOKEN, IMAGE)
TASK_TYPES = {CAUSAL: "CAUSAL_LM", SEQUENCE: "SEQ_CLS", TOKEN: "TOKEN_CLS", IMAGE: None}
"""Model class -> what peft calls the task; it has no name for images."""
VISION_PART = "vision_model"
"""The base of a classifier that has only the vision part of its family's base (CLIP, SigLIP)."""


def model_class_of(names: Sequence[str] | None) -> str | None:
    """The model class that one of these class names is of."""
    known = (CAUSAL, *CLASSIFIERS)
    return next((kind for kind in known for name in names or () if f"For{kind}" in name), None)


def is_classifier(model: nn.Module) -> bool:
    """Whether the model ends in a classification head."""
    return model_class_of([type(model).__name__]) in CLASSIFIERS


def base_name(model: Any) -> str:
    """The name in the model of its pretrained base, which is what its head stands on."""
    name = str(model.base_model_prefix)
    return VISION_PART if not hasattr(model, name) and hasattr(model, VISION_PART) else name


def base_of(model: Any) -> nn.Module:
    """The pretrained base; the whole model where it has none apart (Llama 4)."""
    base: nn.Module = getattr(model, base_name(model), model)
    return base


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters outside the pretrained base, by name."""
    base = {id(p) for p in base_of(model).parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in base}


def head_options(
    num_labels: int, label_names: Sequence[str] | None, *, multi_label: bool = False
) -> dict[str, Any]:
    """What a model's config says of a head with so many outputs; one output of a text is a regression."""
    options: dict[str, Any] = {
        "num_labels": num_labels,
        "problem_type": problem_type(num_labels, multi_label),
    }
    if label_names is not None:
        options["id2label"] = dict(enumerate(label_names))
        options["label2id"] = {name: i for i, name in enumerate(label_names)}
    return options


def problem_type(num_labels: int, multi_label: bool = False) -> str:
    """What transformers calls the problem of a head with so many outputs."""
    if multi_label:
        return "multi_label_classification"
    return "regression" if num_labels == 1 else "single_label_classification"


def stored_labels(config: Any, model_class: str = SEQUENCE) -> list[str] | None:
    """The labels that a checkpoint's head was trained for, in order; None where it has no such head."""
    if model_class_of(getattr(config, "architectures", None)) != model_class:
        return None
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def keeps_head(
    config: Any, num_labels: int, label_names: Sequence[str] | None, model_class: str = SEQUENCE
) -> bool:
    """Whether a checkpoint's own head is used: as many outputs and, where they have names, the same."""
    stored = stored_labels(config, model_class)
    return stored is not None and stored == list(label_names or stored) and len(stored) == num_labels


def head_note(
    config: Any, num_labels: int, label_names: Sequence[str] | None, model_class: str = SEQUENCE
) -> str | None:
    """A line about a checkpoint that comes with a head of its own; None where it has none."""
    stored = stored_labels(config, model_class)
    if stored is None:
        return None
    if keeps_head(config, num_labels, label_names, model_class):
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
    base = {id(module) for module in base_of(model).modules()}
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
