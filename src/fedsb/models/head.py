"""A classification head: which parameters it has, and how it stays fp32."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

CLASSIFIER = "ForSequenceClassification"
"""Ends the class names of such models, in `architectures` of a config too."""


def is_classifier(model: nn.Module) -> bool:
    """Whether the model ends in a sequence-classification head."""
    return CLASSIFIER in type(model).__name__


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters outside the pretrained base (`model.base_model`), by name."""
    base = {id(p) for p in model.base_model.parameters()}  # type: ignore[union-attr]
    return {name: p for name, p in model.named_parameters() if id(p) not in base}


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
