"""Bases from the clients' gradients, and what each client sends of its own.

    moments:  each contributor sends sketches of its gradients' second moments     -> sum -> eigenvectors

    private:  each client sends its noised sum of clipped gradients (see `privacy`) -> sum -> SVD, R0 = 0

With the rules sign and raw, which take the SVD of the first update:

    whole:    each contributor sends its gradient, out x in numbers a layer       -> mean -> rule -> SVD
    factors:  each sends its gradient's best rank-k factors, k the bases' rank     -> mean of products -> same
    sketch:   each sends a sketch of its gradient (see `sketch`)  -> sum -> a low-rank mean -> rule -> SVD

A single contributor sends none of the latter: it takes the SVD itself and sends the bases. Public examples
are at the server, which sends the bases alone.

Factors, sketches and bases travel as bfloat16, half of fp32's bytes; every party makes the bases it gets
orthonormal again, in fp32. Rounding costs sketches little: on MiniLM at rank 28 the mean cosine between their
subspaces and the pooled gradient's falls by 0.003 (sign) and 0.01 (raw), in the least directions, and the
energy they hold not at all; twice the columns, for fp32's bytes, add 0.1 (`benchmarks/sketch_start.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedsb.adapter import Factors, LoraPair, features
from fedsb.bases import bases_from_update, quick_svd
from fedsb.methods.method import Shape
from fedsb.methods.stack import Stack, factors_are_smaller
from fedsb.moments import Sketch, add, leading_directions, probes, sketch_moments
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import StartPlan
from fedsb.privacy.private_start import noised_gradient_sums
from fedsb.seeding import numpy_generator, torch_generator
from fedsb.sketch import MatrixSketch, Probes, add_sketches, draw_probes, matrix_of, sketch_of
from fedsb.traffic import Entry
from fedsb.trainable import Batch, Example, Losses
from fedsb.update_estimate import Rule, apply_rule, estimate_update, sum_over_batches

SENT_AS = torch.bfloat16
MOMENT_BATCH = 4
"""Examples whose summed gradient counts as one in the second moments."""

Draw = dict[int, list[int]]
"""Example indices per client."""


@dataclass(frozen=True)
class Calibration:
    """The examples the start may look at, and how to run them."""

    draw: Draw
    examples: Sequence[Example]
    batches: Callable[[Sequence[Example], int], list[Batch]]
    losses: Losses
    public: bool = False
    """Whether the examples need no protection and are the server's own."""

    def batches_of(self, indices: Sequence[int], batch_size: int) -> list[Batch]:
        """Batches of these examples."""
        return self.batches([self.examples[i] for i in indices], batch_size)


@dataclass(frozen=True)
class PrivateStart:
    """How clients protect what they send: a plan for each, noise, and who is told before a sum leaves."""

    plans: Mapping[int, StartPlan]
    noise: NoiseSource
    charge: Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class GradientStart:
    """How bases come from gradients: fields as in the config's `method` and `method.init`."""

    rule: Rule | Literal["moments"]
    upload: Literal["factors", "sketch", "whole"]
    batch_size: int
    rank: int
    heads: int
    step_size: float
    seed: int
    private: PrivateStart | None = None


class Bases(NamedTuple):
    """Start factors by layer, and what it cost to get them to everybody."""

    factors: dict[str, Factors]
    traffic: list[Entry]


def bases_from_gradients(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: GradientStart,
    calibration: Calibration,
    *,
    num_clients: int,
    sums: MutableMapping[str, Tensor] | None = None,
) -> Bases:
    """The SVD of the estimated first update of all contributors together. The model stays as it is."""
    alone = len(calibration.draw) == 1
    with _frozen(model), _checkpointing_in_eval_mode(model):
        if start.private is not None:
            factors, up = _from_private_sums(model, targets, start, start.private, calibration)
        elif start.rule == "moments":
            factors, up = _from_moments(model, targets, start, calibration)
        elif alone or start.upload == "whole":
            factors = _from_pooled(model, targets, start, calibration, sums)
            up = _bases_up(factors) if alone else _gradients_up(targets, len(calibration.draw))
        elif start.upload == "sketch":
            factors, up = _from_sketches(model, targets, start, calibration)
        else:
            factors, up = _from_sent_factors(model, targets, start, calibration, sums)
    ups = [] if calibration.public else [up]
    return Bases(_as_received(factors), [*ups, _bases_down(factors, num_clients)])


def _from_pooled(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: GradientStart,
    calibration: Calibration,
    sums: MutableMapping[str, Tensor] | None,
) -> dict[str, Factors]:
    indices = [i for part in calibration.draw.values() for i in part]
    batches = calibration.batches_of(indices, start.batch_size)
    reduce, rule = _reduce(start), _step_rule(start)
    return estimate_update(
        model, targets, batches, calibration.losses, reduce, learning_rate=1.0, rule=rule, sums=sums
    )


def _step_rule(start: GradientStart) -> Rule:
    assert start.rule != "moments"
    return start.rule


def _from_sent_factors(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: GradientStart,
    calibration: Calibration,
    sums: MutableMapping[str, Tensor] | None,
) -> tuple[dict[str, Factors], Entry]:
    """Each contributor's message is made and measured; the server holds stacks of factors, or dense sums."""
    stacks = {name: Stack(Shape(*features(layer))) for name, layer in targets.items()}
    size = numbers = 0
    for indices in calibration.draw.values():
        batches = calibration.batches_of(indices, start.batch_size)
        cut, losses = _cut(start), calibration.losses
        sent = estimate_update(
            model, targets, batches, losses, cut, learning_rate=-1.0, rule="raw", sums=sums
        )
        message = {f"{n}.{part}": t.to(SENT_AS) for n, pair in sent.items() for part, t in pair.items()}
        size, numbers = size + len(save(message)), numbers + sum(t.numel() for t in message.values())
        for name, stack in stacks.items():
            stack.add(message[f"{name}.B"], message[f"{name}.A"], float(len(indices)))
    reduce, total = _reduce(start), sum(map(len, calibration.draw.values()))
    factors = {
        name: reduce(name, apply_rule(name, _dense(stack) / total, _step_rule(start), 1.0))
        for name, stack in stacks.items()
    }
    entry = Entry(0, "gradients of the target layers, as factors", "up", len(calibration.draw), size, numbers)
    return factors, entry


def _from_sketches(
    model: nn.Module, targets: Mapping[str, nn.Module], start: GradientStart, calibration: Calibration
) -> tuple[dict[str, Factors], Entry]:
    """The server adds up the contributors' sketches and gets the pooled gradient from the sum, by layer.

    The rule is applied to what comes back, since the sign of a sum is no sum of signs.
    """
    shared, total = _shared_probes(targets, start), dict[str, MatrixSketch]()
    size = numbers = 0
    for indices in calibration.draw.values():
        message = _sketch_message(model, targets, start, calibration, indices, shared)
        size, numbers = size + len(save(message)), numbers + sum(t.numel() for t in message.values())
        for name in targets:
            new = MatrixSketch(*(message[f"{name}.{side}"].double() for side in MatrixSketch._fields))
            total[name] = add_sketches(total[name], new) if name in total else new
    reduce, rule = _reduce(start), _step_rule(start)
    factors = {
        name: reduce(name, apply_rule(name, matrix_of(total.pop(name), shared[name]), rule, 1.0))
        for name in targets
    }
    return factors, Entry(0, "sketches of gradients", "up", len(calibration.draw), size, numbers)


def _shared_probes(targets: Mapping[str, nn.Module], start: GradientStart) -> dict[str, Probes | None]:
    """Every party draws the same ones."""
    return {
        name: draw_probes(
            Shape(*features(layer)),
            start.heads * start.rank,
            generator=torch_generator(start.seed, "sketch", name),
        )
        for name, layer in targets.items()
    }


def _sketch_message(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: GradientStart,
    calibration: Calibration,
    indices: Sequence[int],
    shared: Mapping[str, Probes | None],
) -> dict[str, Tensor]:
    """One contributor's share of the pooled mean, sketched batch by batch: no dense gradient is kept."""
    device = next(model.parameters()).device
    ours = {name: probes and Probes(*(side.to(device) for side in probes)) for name, probes in shared.items()}
    sent = sum_over_batches(
        model,
        targets,
        calibration.batches_of(indices, start.batch_size),
        calibration.losses,
        lambda name, gradient: sketch_of(gradient, ours[name]),
        add_sketches,
    )
    everyone = sum(map(len, calibration.draw.values()))
    return {
        f"{name}.{side}": (tensor / everyone).to("cpu", SENT_AS)
        for name, sketch in sent.items()
        for side, tensor in sketch._asdict().items()
    }


def _from_moments(
    model: nn.Module, targets: Mapping[str, nn.Module], start: GradientStart, calibration: Calibration
) -> tuple[dict[str, Factors], Entry]:
    """The server adds up the contributors' sketches; R0 is zero, since moments have no sign."""
    rank, total = start.heads * start.rank, dict[str, Sketch]()
    shared = {
        name: probes(*features(layer), rank, generator=torch_generator(start.seed, "probes", name))
        for name, layer in targets.items()
    }
    size = numbers = 0
    for indices in calibration.draw.values():
        batches = calibration.batches_of(indices, MOMENT_BATCH)
        sent = sketch_moments(model, targets, batches, calibration.losses, shared)
        message = {f"{n}.{side}": t for n, sketch in sent.items() for side, t in sketch._asdict().items()}
        size, numbers = size + len(save(message)), numbers + sum(t.numel() for t in message.values())
        total = {n: add(total[n], s) if n in total else s for n, s in sent.items()}
    zero = torch.zeros(start.heads, start.rank, start.rank)
    factors = {
        name: Factors(
            B=leading_directions(sketch.left, shared[name].left, rank),
            A=leading_directions(sketch.right, shared[name].right, rank).T.contiguous(),
            R=zero.clone(),
        )
        for name, sketch in total.items()
    }
    return factors, Entry(0, "sketches of gradient moments", "up", len(calibration.draw), size, numbers)


def _from_private_sums(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: GradientStart,
    private: PrivateStart,
    calibration: Calibration,
) -> tuple[dict[str, Factors], Entry]:
    """Each client's noised sums travel whole: the best factors of one alone would be mostly noise."""
    total: dict[str, Tensor] = {}
    size = numbers = 0
    for client, plan in private.plans.items():
        own = calibration.draw[client]
        sample = plan.sample(numpy_generator(start.seed, "private start", client))
        batches = calibration.batches_of([own[i] for i in sample], start.batch_size)
        sums = noised_gradient_sums(
            model, targets, batches, calibration.losses, plan, noise=private.noise, client=client
        )
        private.charge(client)
        message = {name: tensor.to(SENT_AS) for name, tensor in sums.items()}
        size, numbers = size + len(save(message)), numbers + sum(t.numel() for t in message.values())
        total = {n: t.float() + total[n] if n in total else t.float() for n, t in message.items()}
    reduce = _reduce(start)
    factors = {name: _with_zero_core(reduce(name, tensor)) for name, tensor in total.items()}
    return factors, Entry(0, "noised sums of clipped gradients", "up", len(private.plans), size, numbers)


def _with_zero_core(factors: Factors) -> Factors:
    """R0 would be as large as the noise."""
    return factors if factors.R is None else factors._replace(R=torch.zeros_like(factors.R))


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


def _reduce(start: GradientStart) -> Callable[[str, Tensor], Factors]:
    """An update's leading directions, R0 of the wished size."""

    def reduce(name: str, update: Tensor) -> Factors:
        generator = torch_generator(start.seed, "bases", name)
        unit = bases_from_update(update, start.rank, heads=start.heads, generator=generator)
        return unit if unit.R is None else unit._replace(R=start.step_size * unit.R)

    return reduce


def _gradients_up(targets: Mapping[str, nn.Module], contributors: int) -> Entry:
    """Computed from shapes: the simulation pools these gradients in one pass and has no such message."""
    numbers = contributors * sum(prod(features(layer)) for layer in targets.values())
    what = "gradients of the target layers"
    return Entry(0, what, "up", contributors, 4 * numbers, numbers, measured=False)


def _bases_up(factors: Mapping[str, Factors]) -> Entry:
    size, numbers = _sizes(factors, ("A", "B", "R"))
    return Entry(0, "bases from the one contributor", "up", 1, size, numbers)


def _bases_down(factors: Mapping[str, Factors], num_clients: int) -> Entry:
    """R0 comes with the next round's broadcast."""
    size, numbers = _sizes(factors, ("A", "B"))
    return Entry(0, "bases B and A", "down", num_clients, num_clients * size, num_clients * numbers)


def _sizes(factors: Mapping[str, Factors], names: Sequence[str]) -> tuple[int, int]:
    found = {f"{n}.{f}": getattr(part, f) for n, part in factors.items() for f in names}
    tensors = {name: tensor.to("cpu", SENT_AS).contiguous() for name, tensor in found.items()}
    return len(save(tensors)), sum(t.numel() for t in tensors.values())


def _as_received(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """B and A after their journey."""
    return {
        name: part._replace(B=_orthonormal_again(part.B), A=_orthonormal_again(part.A.T).T.contiguous())
        for name, part in factors.items()
    }


def _orthonormal_again(columns: Tensor) -> Tensor:
    """The orthonormal fp32 columns nearest to what bfloat16 kept of these, in the same directions."""
    Q, R = torch.linalg.qr(columns.to(SENT_AS).float())
    return (Q * torch.where(R.diagonal() < 0, -1.0, 1.0)).contiguous()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


@contextmanager
def _checkpointing_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Let blocks with gradient checkpointing switched on use it although there is no dropout: transformers
    asks the block alone whether it is training."""
    blocks = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    modes = [block.training for block in blocks]
    for block in blocks:
        block.training = True
    try:
        yield
    finally:
        for block, mode in zip(blocks, modes, strict=True):
            block.training = mode
