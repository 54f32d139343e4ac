"""The first full-fine-tuning update, captured one layer at a time while the gradient flows back.

Data flow: batches -> per-example losses -> backward -> each target layer's weight gradient, formed when
the gradient reaches it -> summed over batches -> rule -> `reduce` (an SVD, as a rule) -> forgotten.
With one batch no two layers' gradients ever exist together; with several, the running sums live in
`sums`, which may be a mapping that keeps them on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.errors import RunFailed

Rule = Literal["sign", "raw"]
T = TypeVar("T")


def estimate_update(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    losses: Callable[[nn.Module, Any], Float[Tensor, "batch"]],
    reduce: Callable[[str, Float[Tensor, "out in"]], T],
    *,
    learning_rate: float,
    rule: Rule = "sign",
    sums: MutableMapping[str, Tensor] | None = None,
) -> dict[str, T]:
    """`reduce(name, update)` of every layer, where update estimates the first full-fine-tuning step.

    `rule="sign"`: -learning_rate * sign(gradient), AdamW's first step (LoRA-SB, arXiv 2411.19557).
    `rule="raw"`: -learning_rate * gradient, SGD's. The gradient is of the mean of the per-example losses,
    so each example counts the same however it is batched.

    Args:
        layers: target layers by name, with no adapter on them. Their weights may be frozen, of any dtype,
            GPT-2 Conv1D (the update is then (out, in) all the same) or 4-bit.
        losses: (model, batch) -> one loss per example.
        sums: where running sums are kept between batches; a dict in memory by default.

    Raises:
        RunFailed: no gradient reached a layer, or it is not finite.
    """
    sums = {} if sums is None else sums
    num_examples = 0
    reduced: dict[str, T] = {}

    def consume(name: str, gradient: Tensor, complete: bool) -> None:
        total = sums.pop(name).add_(gradient) if name in sums else gradient
        if name in reduced:
            raise RunFailed(
                f"update estimate: layer {name!r} is used in several checkpointed segments; switch "
                "training.gradient_checkpointing off"
            )
        if complete:
            reduced[name] = reduce(name, apply_rule(name, total.div_(num_examples), rule, learning_rate))
        else:
            sums[name] = total

    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with gradients_of(layers, lambda name, g, done, last=last: consume(name, g, done and last)):  # type: ignore[misc]
            loss = losses(model, batch)
            num_examples += loss.numel()
            loss.sum().backward()
    return {name: _reached(name, reduced) for name in layers}


def sum_over_batches(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    losses: Callable[[nn.Module, Any], Float[Tensor, "batch"]],
    part: Callable[[str, Float[Tensor, "out in"]], T],
    add: Callable[[T, T], T],
) -> dict[str, T]:
    """The sum over batches of `part(name, gradient)`, gradients being those of each batch's summed loss.

    Memory beyond the backward pass: one layer's gradient, and one part of each layer.

    Raises:
        RunFailed: no gradient reached a layer, or it is not finite.
    """
    total: dict[str, T] = {}

    def consume(name: str, gradient: Tensor, done: bool) -> None:
        _refuse_not_finite(name, gradient)
        new = part(name, gradient)
        total[name] = add(total[name], new) if name in total else new

    for batch in batches:
        with gradients_of(layers, consume):
            losses(model, batch).sum().backward()
    return {name: _reached(name, total) for name in layers}


Combine = Callable[[Tensor, Tensor], Tensor]
"""(gradient at a layer's output, the layer's input), examples first -> its weight gradient."""


def summed(gradient: Tensor, x: Tensor) -> Tensor:
    """The weight gradient of the whole batch."""
    return gradient.flatten(0, -2).T @ x.flatten(0, -2).to(gradient.dtype)


@contextmanager
def gradients_of(
    layers: Mapping[str, nn.Module],
    consume: Callable[[str, Float[Tensor, "out in"], bool], None],
    combine: Combine = summed,
) -> Iterator[None]:
    """Inside the block, `consume(name, gradient, done)` gets each layer's fp32 weight gradient on backward.

    `done` says that no use of the layer in this forward pass is outstanding (a layer may be used twice).
    The weights themselves need no gradient: input and output gradient are caught at the layer's border.
    Gradient checkpointing must be the re-entrant kind to save memory here.
    """
    uses: Counter[str] = Counter()
    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(_watch(name, uses, consume, combine)))
        yield


def _watch(
    name: str, uses: Counter[str], consume: Callable[[str, Tensor, bool], None], combine: Combine
) -> Callable[..., Tensor | None]:
    def after_forward(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        held = [args[0].detach()]  # let go of as soon as used, while the rest of the graph still lives
        uses[name] += 1
        ends_here = not output.requires_grad  # the first adapted layer of a frozen model
        if ends_here:
            output.requires_grad_(True)
        output.register_hook(lambda gradient: receive(gradient, held.pop()))
        # what DeBERTa or Longformer does in place cannot be done to a leaf, and takes a view out of the graph
        return output.clone() if ends_here or output._is_view() else None

    def receive(gradient: Tensor, x: Tensor) -> None:
        uses[name] -= 1
        consume(name, combine(gradient, x).float(), uses[name] == 0)

    return after_forward


def apply_rule(name: str, gradient: Tensor, rule: Rule, learning_rate: float) -> Tensor:
    """The step of this rule, in place of the gradient. Layer `name` is for the error alone."""
    _refuse_not_finite(name, gradient)
    step = gradient.sign_() if rule == "sign" else gradient
    return step.mul_(-learning_rate)


def _refuse_not_finite(name: str, gradient: Tensor) -> None:
    if not torch.isfinite(gradient).all():
        raise RunFailed(
            f"update estimate: the gradient of layer {name!r} is not finite; try float32 or less data"
        )


def _reached(name: str, results: Mapping[str, T]) -> T:
    if name not in results:
        raise RunFailed(
            f"update estimate: no gradient reached layer {name!r}; leave it out of method.targets"
        )
    return results[name]
