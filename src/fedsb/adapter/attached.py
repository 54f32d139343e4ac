"""The adapter on a whole model: put over its linear layers, read, written, folded, merged, taken off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn

from fedsb.adapter.layer import FACTOR_NAMES, Factors, LoraPair, LowRankLinear
from fedsb.adapter.linear import dense_weight, features, is_linear, is_quantized, like_base
from fedsb.adapter.routing import Routing, share, unshare
from fedsb.errors import InputError


@dataclass(frozen=True)
class Attached:
    """A model with adapter layers in it, and what is needed to take them out again."""

    model: nn.Module
    layers: dict[str, LowRankLinear]
    requires_grad_before: dict[str, bool]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer an adapter could sit on, by name."""
    return {name: module for name, module in model.named_modules() if name and is_linear(module)}


def find_targets(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Module]:
    """The linear layers whose dotted name equals a target or ends in `.target`, in the model's order.

    Raises:
        InputError: a target matches nothing; the message lists the linear layers that exist.
    """
    layers = linear_layers(model)
    chosen: set[str] = set()
    for target in targets:
        hits = [name for name in layers if name == target or name.endswith("." + target)]
        if not hits:
            raise InputError(_no_such_target(target, layers))
        chosen.update(hits)
    return {name: layer for name, layer in layers.items() if name in chosen}


def _no_such_target(target: str, layers: Mapping[str, nn.Module]) -> str:
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    close = get_close_matches(target, endings, n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return (
        f"method.targets: no linear layer is called {target!r}.{hint} "
        f"The model's linear layers end in: {', '.join(endings)}."
    )


def check_rank(layers: Mapping[str, nn.Module], rank: int, *, heads: int = 1) -> None:
    """Refuse a rank that does not fit the smallest target layer.

    Raises:
        InputError: heads * rank exceeds min(out, in) of some layer.
    """
    smallest = min(layers, key=lambda name: min(features(layers[name])))
    limit = min(features(layers[smallest]))
    if 1 <= heads * rank <= limit:
        return
    shape = " x ".join(map(str, features(layers[smallest])))
    if heads > limit:
        raise InputError(
            f"method.rank: {heads} heads do not fit: layer {smallest!r} is {shape}. Lower method.heads or "
            "leave that layer out of method.targets."
        )
    several, advice = (f", and there are {heads} heads", " or method.heads,") if heads > 1 else ("", "")
    raise InputError(
        f"method.rank: expected 1 to {limit // heads}, found {rank}: layer {smallest!r} is {shape}{several}. "
        f"Lower method.rank{advice} or leave that layer out of method.targets."
    )


def attach(
    model: nn.Module,
    factors: Mapping[str, Factors],
    *,
    trains: Sequence[str] = ("R",),
    scale: float = 1.0,
    routing: Routing | None = None,
    less_start: bool = False,
) -> Attached:
    """Freeze the model and put a LowRankLinear over each layer named in `factors`.

    The base layers are kept, not copied. `detach` undoes it all, gradient flags included. A routing is shared
    by all layers, and lies at `model.routing`.
    """
    before = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    over = partial(LowRankLinear, trains=trains, scale=scale, routing=routing, less_start=less_start)
    layers = {name: over(model.get_submodule(name), start) for name, start in factors.items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    if routing is not None:
        share(routing, model)
    return Attached(model, layers, before)


def detach(attached: Attached) -> nn.Module:
    """Take the adapter layers out; the model is then bit for bit what it was before `attach`."""
    for name, layer in attached.layers.items():
        layer.set_base_update(None)
        attached.model.set_submodule(name, layer.base)
    unshare(attached.model)
    for name, parameter in attached.model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(attached.requires_grad_before[name])
    return attached.model


def collect(attached: Attached, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Copies of the factors, keyed `layer.FACTOR`; by default of those that train."""
    return {key: p.detach().clone() for key, p in _factors(attached, names).items()}


def load(attached: Attached, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors made by `collect` (from this or another copy of the model) into the layers.

    Raises:
        KeyError: a key that names no factor here.
        ValueError: a shape that differs.
    """
    parameters = _factors(attached, FACTOR_NAMES)
    for key, tensor in tensors.items():
        if key not in parameters:
            raise KeyError(f"no adapter factor is called {key!r}")
        if parameters[key].shape != tensor.shape:
            raise ValueError(f"{key}: expected {tuple(parameters[key].shape)}, found {tuple(tensor.shape)}")
        with torch.no_grad():
            parameters[key].copy_(tensor)


def set_factors(attached: Attached, values: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put values, by layer and factor, into the layers, whatever rank the layers had before."""
    for name, factors in values.items():
        for factor, value in factors.items():
            attached.layers[name].set_factor(factor, value)


def set_trained(attached: Attached, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Let these factors train and no others; the parameters that train, keyed `layer.FACTOR`."""
    for layer in attached.layers.values():
        for name, parameter in layer.factors().items():
            parameter.requires_grad_(name in names)
    return _factors(attached, names)


def set_base_updates(attached: Attached, updates: Mapping[str, Tensor]) -> None:
    """Make each base weight W0 + its update; layers that are not named get W0 back."""
    for name, layer in attached.layers.items():
        layer.set_base_update(updates.get(name))


def _factors(attached: Attached, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    return {
        f"{layer_name}.{name}": parameter
        for layer_name, layer in attached.layers.items()
        for name, parameter in layer.factors().items()
        if (parameter.requires_grad if names is None else name in names)
    }


def fold(attached: Attached) -> dict[str, LoraPair]:
    """Every layer as an ordinary LoRA with scale 1, exact: rank heads * r unless the base was changed too."""
    return {name: layer.lora() for name, layer in attached.layers.items()}


def merge(attached: Attached) -> nn.Module:
    """Add each update to its base weight (in fp32, then cast back) and take the adapter layers out.

    A layer whose weight is tied to another module's gets a weight of its own.

    Raises:
        InputError: a base layer is stored in 4 bits and cannot take the update exactly.
    """
    for name, layer in attached.layers.items():
        if is_quantized(layer.base):
            raise InputError(
                f"layer {name!r} is stored in 4 bits: load the model in bfloat16 or float32 to merge"
            )
    for layer in attached.layers.values():
        update = layer.update()
        layer.set_base_update(None)
        layer.base.weight = like_base(layer.base, dense_weight(layer.base) + update)
    return detach(attached)
