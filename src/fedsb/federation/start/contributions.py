"""What one contributor sends so that bases can be made of everybody's gradients, and what is made of it.

    factors:  the gradient's best rank-k factors, k the bases' rank       -> mean of products -> rule -> SVD
    sketch:   a linear sketch of the gradient                             -> sum -> gradient -> rule -> SVD
    moments:  sketches of the second moments of small batches' gradients  -> sum -> eigenvectors, R0 = 0

A contribution is a value: `send` runs where the examples are, `combine` where the messages come together,
in one process or across machines. Tensors are named `layer.part`.
Under privacy there is one way, `noised_sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors, LoraPair
from fedsb.adapter.bases import quick_svd
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import apply_rule, estimate_update, sum_over_batches
from fedsb.common.seeding import torch_generator
from fedsb.federation.start.contribution import (
    SENT_AS,
    Contribution,
    GradientStart,
    Own,
    Shapes,
    Tensors,
    check_some,
    empty,
    norms_of,
    reducer,
    step_rule,
)
from fedsb.federation.start.moments import Sketch, add, leading_directions, probes, sketch_moments
from fedsb.federation.start.noised_sums import NOISED_SUMS
from fedsb.federation.start.robust import Sizes
from fedsb.federation.start.sketches import (
    COLUMNS_PER_DIRECTION,
    MatrixSketch,
    Probes,
    add_sketches,
    draw_probes,
    matrix_of,
    sketch_of,
    sketch_widths,
)
from fedsb.methods.averaging.stack import Stack, factors_are_smaller, product_squared_norm
from fedsb.methods.method import Shape

MOMENT_BATCH = 4
"""Examples whose summed gradient counts as one in the second moments."""


def contribution(start: GradientStart) -> Contribution:
    """The one that this start asks for, where each contributor sends its own."""
    if start.private is not None:
        return NOISED_SUMS
    if start.rule == "moments":
        return MOMENTS
    return SKETCH if start.upload == "sketch" else FACTORS


# Factors


def _send_factors(
    model: nn.Module, targets: Mapping[str, nn.Module], start: GradientStart, own: Own
) -> Tensors:
    sent = estimate_update(
        model,
        targets,
        own.batches(start.batch_size),
        own.losses,
        _cut(start),
        learning_rate=-1.0,
        rule="raw",
        sums=own.sums,
    )
    return {f"{n}.{part}": t.to(SENT_AS) for n, pair in sent.items() for part, t in pair.items()}


def _combine_factors(
    shapes: Shapes, start: GradientStart, messages: Iterable[tuple[Tensors, int]]
) -> dict[str, Factors]:
    """Stacks of factors, or dense sums where those are smaller."""
    stacks, total = {name: Stack(shape) for name, shape in shapes.items()}, 0
    for message, num_examples in messages:
        total += num_examples
        for name, stack in stacks.items():
            stack.add(message[f"{name}.B"], message[f"{name}.A"], float(num_examples))
    check_some(total)
    reduce = reducer(start)
    return {
        name: reduce(name, apply_rule(name, _dense(stack) / total, step_rule(start), 1.0))
        for name, stack in stacks.items()
    }


def _dense(stack: Stack) -> Tensor:
    found = stack.result(1.0)
    return found.B @ found.A if isinstance(found, LoraPair) else found


def _cut(start: GradientStart) -> Callable[[str, Tensor], dict[str, Tensor]]:
    """A gradient's best factors of the bases' rank, or the gradient itself (and I) where that is smaller."""
    rank = start.heads * start.rank

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


def _factors_like(shapes: Shapes, start: GradientStart) -> Tensors:
    rank = start.heads * start.rank
    found: Tensors = {}
    for name, shape in shapes.items():
        inner = rank if factors_are_smaller(shape, rank) else shape.n_in
        found |= {f"{name}.B": empty(shape.out, inner), f"{name}.A": empty(inner, shape.n_in)}
    return found


# Sketches


def _send_sketch(
    model: nn.Module, targets: Mapping[str, nn.Module], start: GradientStart, own: Own
) -> Tensors:
    """Its share of the pooled mean, sketched batch by batch: no dense gradient is kept."""
    device = next(model.parameters()).device
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    ours = {
        name: shared and Probes(*(side.to(device) for side in shared))
        for name, shared in _shared_probes(shapes, start).items()
    }
    sent = sum_over_batches(
        model,
        targets,
        own.batches(start.batch_size),
        own.losses,
        lambda name, gradient: sketch_of(gradient, ours[name]),
        add_sketches,
    )
    return {
        f"{name}.{side}": (tensor / own.everyone).to("cpu", SENT_AS)
        for name, sketch in sent.items()
        for side, tensor in sketch._asdict().items()
    }


def _combine_sketches(
    shapes: Shapes, start: GradientStart, messages: Iterable[tuple[Tensors, int]]
) -> dict[str, Factors]:
    """The sum of the sketches is all that is looked at. The rule is applied to what comes back, since the
    sign of a sum is no sum of signs."""
    total: dict[str, MatrixSketch] = {}
    for message, _ in messages:
        for name in shapes:
            new = MatrixSketch(*(message[f"{name}.{side}"].double() for side in MatrixSketch._fields))
            total[name] = add_sketches(total[name], new) if name in total else new
    check_some(len(total))
    reduce, shared = reducer(start), _shared_probes(shapes, start)
    return {
        name: reduce(name, apply_rule(name, matrix_of(total.pop(name), shared[name]), step_rule(start), 1.0))
        for name in shapes
    }


def _shared_probes(shapes: Shapes, start: GradientStart) -> dict[str, Probes | None]:
    """Every party draws the same ones."""
    width = start.heads * start.rank
    return {
        name: draw_probes(shape, width, generator=torch_generator(start.seed, "sketch", name))
        for name, shape in shapes.items()
    }


def _sketch_like(shapes: Shapes, start: GradientStart) -> Tensors:
    found: Tensors = {}
    for name, shape in shapes.items():
        widths = sketch_widths(shape, start.heads * start.rank, COLUMNS_PER_DIRECTION)
        columns, rows = (shape.n_in, 0) if widths is None else widths
        found |= {f"{name}.columns": empty(shape.out, columns), f"{name}.rows": empty(rows, shape.n_in)}
    return found


# Moments


def _send_moments(
    model: nn.Module, targets: Mapping[str, nn.Module], start: GradientStart, own: Own
) -> Tensors:
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    shared = _moment_probes(shapes, start)
    sent = sketch_moments(model, targets, own.batches(MOMENT_BATCH), own.losses, shared)
    return {f"{n}.{side}": t for n, sketch in sent.items() for side, t in sketch._asdict().items()}


def _combine_moments(
    shapes: Shapes, start: GradientStart, messages: Iterable[tuple[Tensors, int]]
) -> dict[str, Factors]:
    """R0 is zero, since moments have no sign."""
    total: dict[str, Sketch] = {}
    for message, _ in messages:
        for name in shapes:
            new = Sketch(*(message[f"{name}.{side}"] for side in Sketch._fields))
            total[name] = add(total[name], new) if name in total else new
    check_some(len(total))
    rank, shared = start.heads * start.rank, _moment_probes(shapes, start)
    return {
        name: Factors(
            B=leading_directions(sketch.left, shared[name].left, rank),
            A=leading_directions(sketch.right, shared[name].right, rank).T.contiguous(),
            R=torch.zeros(start.heads, start.rank, start.rank),
        )
        for name, sketch in total.items()
    }


def _moment_probes(shapes: Shapes, start: GradientStart) -> dict[str, Sketch]:
    width = start.heads * start.rank
    return {
        name: probes(*shape, width, generator=torch_generator(start.seed, "probes", name))
        for name, shape in shapes.items()
    }


def _moments_like(shapes: Shapes, start: GradientStart) -> Tensors:
    shared = _moment_probes(shapes, start)
    return {f"{n}.{side}": t for n, sketch in shared.items() for side, t in sketch._asdict().items()}


FACTORS = Contribution(
    "gradients of the target layers, as factors",
    _send_factors,
    _combine_factors,
    _factors_like,
    _factor_sizes,
)
SKETCH = Contribution(
    "sketches of gradients", _send_sketch, _combine_sketches, _sketch_like, norms_of(*MatrixSketch._fields)
)
MOMENTS = Contribution(
    "sketches of gradient moments", _send_moments, _combine_moments, _moments_like, norms_of(*Sketch._fields)
)
