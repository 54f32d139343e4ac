"""Which layers of a model are adapted: those named, those of a group, or its family's default.

Defaults and groups take what an adapter can do something for; what they leave out is told with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedsb.adapter.attached import find_targets, linear_layers
from fedsb.adapter.linear import features
from fedsb.errors import InputError
from fedsb.models.head import base_of, head_parameters, is_classifier
from fedsb.models.layer_uses import LayerUses, uses_of_layers

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

VISION_TARGETS = {
    family: ["q_proj", "v_proj"] for family in ("beit", "clip", "deit", "dinov2", "siglip", "swin", "vit")
}
"""The same of encoders of images."""

GROUPS = ("all-linear", "attention", "mlp")
"""Words that stand for layers, as in `method.targets`: all in the repeated blocks, or those of one kind."""


@dataclass(frozen=True)
class Choice:
    """The layers to adapt, and those that were left out, by name with the reason."""

    layers: dict[str, nn.Module]
    left_out: dict[str, str]


def default_targets(model: nn.Module) -> list[str]:
    """Names or endings of the layers that are adapted when the config names none, before any is left out.

    Encoders: query and value. Decoders: every attention and MLP projection, i.e. every linear layer of the
    base model (the output layer and a classification head are not in it).
    """
    family = model.config.model_type  # type: ignore[union-attr]
    if known := (ENCODER_TARGETS | VISION_TARGETS).get(str(family)):
        return known
    base = {id(module) for module in base_of(model).modules()}
    base.discard(id(model.get_output_embeddings()))  # type: ignore[operator]  # Llama 4's base is all of it
    return [name for name, layer in linear_layers(model).items() if id(layer) in base]


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


def chosen_targets(
    model: nn.Module, targets: Sequence[str] | str | None, *, rank: int = 1
) -> dict[str, nn.Module]:
    """The layers of `choose_targets`.

    Raises:
        InputError: as there.
    """
    return choose_targets(model, targets, rank=rank).layers


def choose_targets(model: nn.Module, targets: Sequence[str] | str | None, *, rank: int = 1) -> Choice:
    """The layers to adapt: those named, those of a group, or (None) the family's default.

    Layers of a classification head are left out: it trains whole. So are layers that an adapter would do
    nothing for; of groups and defaults also routers, poolers and layers narrower than `rank`, where others
    are left.

    Raises:
        InputError: a name matches nothing, nothing but the head, or only layers that no adapter works on.
    """
    named = targets is not None and not isinstance(targets, str)
    uses = uses_of_layers(model)
    if named:
        _check_names(model, targets, uses)  # type: ignore[arg-type]
    names = group(model, targets) if isinstance(targets, str) else targets or default_targets(model)
    layers = _outside_head(model, find_targets(model, names))
    left_out = _useless(layers, uses)
    if not named:
        left_out |= _unsuited(layers, uses)
        sizes = {name: min(features(layer)) for name, layer in layers.items()}
        narrow = {name: f"narrower than rank {rank}" for name, size in sizes.items() if size < rank}
        if not layers.keys() <= left_out.keys() | narrow.keys():
            left_out = narrow | left_out
    kept = {name: layer for name, layer in layers.items() if name not in left_out}
    if not kept:
        raise InputError(f"method.targets: no layer is left to adapt: {shortened(left_out)}; name the layers")
    return Choice(kept, {name: left_out[name] for name in layers if name in left_out})


def _outside_head(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
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


def _check_names(model: nn.Module, names: Sequence[str], uses: LayerUses | None) -> None:
    """Each name must match a linear layer, and one that an adapter works on."""
    layers, stacks = linear_layers(model), expert_stacks(model)
    for name in names:
        if _ends(stacks, name) and not _ends(layers, name):
            raise InputError(
                f"method.targets: {name} holds the weights of all experts in one tensor, which is not "
                "adapted; leave it out"
            )
        matches = find_targets(model, [name])
        useless = _useless(matches, uses)
        if matches.keys() == useless.keys():
            raise InputError(
                f"method.targets: no adapter works on {name!r}: {shortened(useless)}; leave it out"
            )


def _ends(names: Iterable[str], ending: str) -> bool:
    return any(f".{name}".endswith(f".{ending}") for name in names)


def _useless(layers: Iterable[str], uses: LayerUses | None) -> dict[str, str]:
    """Layers whose adapter would have no effect, with the reason."""
    if uses is None:
        return {}
    reasons = dict.fromkeys(uses.read, "its weight is read without calling the layer")
    reasons |= dict.fromkeys(uses.compound, "gives several tensors")
    return {n: reasons.get(n, "not on the way to the output") for n in layers if n not in uses.reached}


def _unsuited(layers: Mapping[str, nn.Module], uses: LayerUses | None) -> dict[str, str]:
    """Layers that an adapter could work on, but nobody means by "all", with the reason."""
    uses = uses or LayerUses()
    gates = {name: "only one input or output" for name, layer in layers.items() if min(features(layer)) == 1}
    routers = {name: "picks experts" for name in layers if name in uses.rank_experts}
    pooled = {name: "sees one position, not every token" for name in layers if name in uses.pooled}
    return pooled | routers | gates


def shortened(names: Mapping[str, str]) -> str:
    """Names by reason, in one line; those that differ in numbers alone are one."""
    by_reason: dict[str, dict[str, None]] = {}
    for name, reason in names.items():
        by_reason.setdefault(reason, {})[re.sub(r"\b\d+\b", "*", name)] = None
    return "; ".join(f"{', '.join(patterns)} ({reason})" for reason, patterns in by_reason.items())


# What is not adapted


def expert_stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that hold the weights of all experts of a layer, (experts, ., .), by name."""
    return {
        f"{owner}.{name}": parameter
        for owner, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and hasattr(module, "num_experts")
    }


def notes_on(model: Any, choice: Choice) -> list[str]:
    """Lines for whoever starts a run: what is not adapted, and why."""
    notes = []
    if choice.left_out:
        notes.append(f"not adapted: {shortened(choice.left_out)}")
    if stacks := expert_stacks(model):
        tables = {id(p) for p in (model.get_input_embeddings().weight, _output_weight(model))}
        total = sum(p.numel() for p in model.parameters() if id(p) not in tables)
        share = sum(p.numel() for p in stacks.values()) / total
        names = ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in stacks))
        notes.append(
            f"experts are not adapted: {names} hold {share:.0%} of the weights outside the embeddings, in "
            "one tensor for all experts of a layer"
        )
    return notes


def _output_weight(model: Any) -> Any:
    return getattr(model.get_output_embeddings(), "weight", None)
