"""A model that drops nothing while it trains, whatever its config says.

Masks are drawn for a batch as a whole: with dropout, one example more would move every other example's
gradient, and no clipping would bound what one example can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.errors import RunFailed


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes as in eval mode; afterwards every module has its own mode again.

    Only modules that are asked for their own `training` keep it: blocks with gradient checkpointing
    (transformers) and layers with trained parameters (Opacus). Their own probabilities are zero meanwhile.

    Raises:
        RunFailed: one of those has a probability that cannot be set; it is named.
    """
    modes = [(module, module.training) for module in model.modules()]
    awake = {module: name for name, module in model.named_modules() if _must_train(module)}
    changed: list[tuple[Any, str, float]] = []
    try:
        for module, _ in modes:
            module.training = module in awake
        for module, name in awake.items():
            for holder in (module, getattr(module, "config", None)):
                changed += _silenced(name, holder)
        yield
    finally:
        for holder, attribute, value in reversed(changed):
            setattr(holder, attribute, value)
        for module, training in modes:
            module.training = training


def _must_train(module: nn.Module) -> bool:
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    return trains or bool(getattr(module, "gradient_checkpointing", False))


def _silenced(name: str, holder: Any) -> Iterator[tuple[Any, str, float]]:
    """Set every probability of dropping to zero; what they were."""
    for attribute in dir(holder):
        value = getattr(holder, attribute, None) if "drop" in attribute.lower() else None
        if not isinstance(value, float) or value == 0:
            continue
        try:
            setattr(holder, attribute, 0.0)
        except (AttributeError, ValueError) as error:
            raise RunFailed(
                f"{name or 'the model'}: its {attribute} of {value:g} cannot be switched off ({error}), and "
                "private training must not drop anything; set it to 0 in the model's config.json"
            ) from None
        yield holder, attribute, value


def check_repeatable(model: nn.Module, losses: Callable[[], Tensor]) -> None:
    """Refuse a model that computes one batch in two ways.

    Raises:
        RunFailed: with the first layer that does.
    """
    if _same(losses(), losses()):
        return
    first, second = _outputs(model, losses), _outputs(model, losses)
    layer = next((name for name in first if not _same(first[name], second.get(name, first[name]))), "")
    raise RunFailed(
        f"private training: {layer or 'the model'} gives one batch two results, so chance enters the "
        "gradients before they are clipped; take a model without dropout or noise of its own, or leave "
        "privacy out"
    )


def _outputs(model: nn.Module, losses: Callable[[], Tensor]) -> dict[str, Tensor]:
    """What each module gave at last, by name, in the order in which they ended."""
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(tensor := output[0] if isinstance(output, tuple) else output, Tensor):
                outputs[name] = tensor.detach().clone()

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(note(name)))
        losses()
    return outputs


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-5, atol=1e-7, equal_nan=True)
