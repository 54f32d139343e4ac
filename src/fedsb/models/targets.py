"""Which layers of a model are adapted: those named, those of a group, or its family's default."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fedsb.adapter.attached import find_targets, linear_layers
from fedsb.adapter.linear import is_linear
from fedsb.errors import InputError
from fedsb.models.head import head_parameters, is_classifier

ENCODER_TARGETS = {
    "albert": ["query", "value"],
    "bert": ["query", "value"],
    "camembert": ["query", "value"],
    "deberta": ["in_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "electra": ["query", "value"],
    "modernbert": ["Wqkv"],
    "mpnet": ["attn.q", "attn.v"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
}
"""Query and value, as LoRA's authors adapt encoders; other families: every attention and MLP projection."""

GROUPS = ("all-linear", "attention", "mlp")
"""Words that stand for layers, as in `method.targets`: all in the repeated blocks, or those of one kind."""


def default_targets(model: nn.Module) -> list[str]:
    """Layer-name endings that are adapted when the config names none.

    Encoders: query and value. Decoders: every attention and MLP projection, i.e. every linear layer of the
    base model (the output layer and a classification head are not in it).
    """
    family = model.config.model_type  # type: ignore[union-attr]
    if family in ENCODER_TARGETS:
        return ENCODER_TARGETS[family]  # type: ignore[index]
    base: nn.Module = model.base_model  # type: ignore[assignment]
    endings = {
        name.rsplit(".", 1)[-1]: None for name, module in base.named_modules() if name and is_linear(module)
    }
    return list(endings)


def group(model: nn.Module, name: str) -> list[str]:
    """Names of a group's linear layers, inside the model's repeated blocks: no pooler, output layer or head.

    all-linear: all of them. attention: those somewhere inside a module whose class is an attention.
    mlp: the others.

    Raises:
        InputError: there are none.
    """
    inside = [layer for layer in linear_layers(model) if any(part.isdigit() for part in layer.split("."))]
    if name != "all-linear":
        inside = [layer for layer in inside if _is_attention(model, layer) == (name == "attention")]
    if not inside:
        raise InputError(f"method.targets: {name} found no linear layer in repeated blocks; name the layers")
    return inside


def _is_attention(model: nn.Module, layer: str) -> bool:
    parts = layer.split(".")
    around = (model.get_submodule(".".join(parts[:n])) for n in range(1, len(parts)))
    return any("Attention" in type(module).__name__ for module in around)


def chosen_targets(model: nn.Module, targets: Sequence[str] | str | None) -> dict[str, nn.Module]:
    """The layers to adapt: those named, those of a group, or (None) the family's default.

    Layers of a classification head are left out: it trains whole.

    Raises:
        InputError: a name matches nothing but the head, or nothing.
    """
    names = group(model, targets) if isinstance(targets, str) else targets or default_targets(model)
    layers = find_targets(model, names)
    if not is_classifier(model):
        return layers
    head = set(head_parameters(model))
    kept = {name: layer for name, layer in layers.items() if f"{name}.weight" not in head}
    if not kept:
        raise InputError(
            f"method.targets: {', '.join(layers)} belongs to the task head, which trains whole; name layers "
            "of the base model, or leave targets out"
        )
    return kept
