"""Bases from factors: each contributor sends its gradient's best rank-k factors, k the bases' rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors, LoraPair
from fedsb.adapter.bases import quick_svd
from fedsb.adapter.update_estimate import apply_rule, estimate_update
from fedsb.common.seeding import torch_generator
from fedsb.federation.start.contribution import (
    SENT_AS,
    Contribution,
    Contributor,
    Shapes,
    Tensors,
    check_some,
    empty,
    finished,
    reducer,
    step_rule,
)
from fedsb.federation.start.ranks import directions_sent
from fedsb.federation.start.robust import Sizes
from fedsb.federation.start.settings import Start
from fedsb.methods.averaging.stack import Stack, factors_are_smaller, product_squared_norm
from fedsb.methods.method import Shape


def _send_factors(
    model: nn.Module, targets: Mapping[str, nn.Module], start: Start, contributor: Contributor
) -> Tensors:
    batches, losses, sums = contributor.batches(start.batch_size), contributor.losses, contributor.sums
    sent = estimate_update(
        model, targets, batches, losses, _cut(start), learning_rate=-1.0, rule="raw", sums=sums
    )
    return {f"{n}.{part}": t.to(SENT_AS) for n, pair in sent.items() for part, t in pair.items()}


def _combine_factors(
    shapes: Shapes, start: Start, messages: Iterable[tuple[Tensors, int]]
) -> dict[str, Factors]:
    """Stacks of factors, or dense sums where those are smaller."""
    stacks, total = {name: Stack(shape) for name, shape in shapes.items()}, 0
    for message, num_examples in messages:
        total += num_examples
        for name, stack in stacks.items():
            stack.add(message[f"{name}.B"], message[f"{name}.A"], float(num_examples))
    check_some(total)
    reduce = reducer(start)
    found = {
        name: reduce(name, apply_rule(name, _dense(stack) / total, step_rule(start), 1.0))
        for name, stack in stacks.items()
    }
    return finished(found, start)


def _dense(stack: Stack) -> Tensor:
    total = stack.result(1.0)
    return total.B @ total.A if isinstance(total, LoraPair) else total


def _cut(start: Start) -> Callable[[str, Tensor], dict[str, Tensor]]:
    """A gradient's best factors of the bases' rank, or the gradient itself (and I) where that is smaller."""
    rank = directions_sent(start)

    def cut(name: str, gradient: Tensor) -> dict[str, Tensor]:
        if not factors_are_smaller(Shape(*gradient.shape), rank):
            return {"B": gradient.cpu(), "A": torch.eye(gradient.shape[1])}
        U, S, Vh = quick_svd(gradient, rank, generator=torch_generator(start.seed, "cut", name))
        return {"B": (U * S).cpu().contiguous(), "A": Vh.cpu().contiguous()}

    return cut


def _factor_sizes(message: Tensors, layer: str) -> Sizes:
    """B alone is scaled: the size is that of the product."""
    pair = LoraPair(message[f"{layer}.B"], message[f"{layer}.A"])
    return Sizes((product_squared_norm(pair) ** 0.5,), (f"{layer}.B",))


def _factors_like(shapes: Shapes, start: Start) -> Tensors:
    rank = directions_sent(start)
    template: Tensors = {}
    for name, shape in shapes.items():
        inner = rank if factors_are_smaller(shape, rank) else shape.n_in
        template |= {f"{name}.B": empty(shape.out, inner), f"{name}.A": empty(inner, shape.n_in)}
    return template


WHAT = "gradients of the target layers, as factors"
FACTORS = Contribution(WHAT, _send_factors, _combine_factors, _factors_like, _factor_sizes)
