"""Bases from the clients' gradients, and what each client sends.

    contributions:  each contributor sends factors, sketches or noised sums (see `contribution`)  -> combined
    whole:          each contributor sends its gradient, out x in numbers a layer  -> mean -> rule -> SVD

Without privacy and with the rules sign and raw a single contributor takes the SVD itself and sends the bases.
Public examples are at the server, which sends the bases alone.

Factors, sketches and bases travel as bfloat16, half of fp32's bytes; every party makes the bases it gets
orthonormal again, in fp32. Rounding costs sketches little: on MiniLM at rank 28 the mean cosine between their
subspaces and the pooled gradient's falls by 0.003 (sign) and 0.01 (raw), in the least directions, and the
energy they hold not at all; twice the columns, for fp32's bytes, add 0.1 (`studies/sketch_start.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import estimate_update
from fedsb.federation.dropout import without_dropout
from fedsb.federation.exchange import Layout
from fedsb.federation.local_model import Batch, Example, Losses
from fedsb.federation.secure.here import secure_sum_here
from fedsb.federation.secure.server import Total, traffic_of
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules
from fedsb.federation.start.contribution import (
    SENT_AS,
    Contribution,
    Contributor,
    Tensors,
    finished,
    reducer,
    step_rule,
)
from fedsb.federation.start.factors import FACTORS
from fedsb.federation.start.moments import MOMENTS
from fedsb.federation.start.noised_sums import NOISED_SUMS
from fedsb.federation.start.settings import Start
from fedsb.federation.start.sketches import SKETCH
from fedsb.federation.traffic import Tally, Traffic
from fedsb.methods.method import Shape

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


class Bases(NamedTuple):
    """Start factors by layer, and what it cost to get them to everybody."""

    factors: dict[str, Factors]
    traffic: list[Traffic]


def bases_from_gradients(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: Start,
    calibration: Calibration,
    *,
    num_clients: int,
    sums: MutableMapping[str, Tensor] | None = None,
) -> Bases:
    """The SVD of the estimated first update of all contributors together. The model stays as it is."""
    alone = len(calibration.draw) == 1 and start.secure is None
    with estimating(model):
        if start.private is None and start.rule != "moments" and (alone or start.upload == "whole"):
            factors = _from_pooled(model, targets, start, calibration, sums)
            up = [_bases_up(factors) if alone else _gradients_up(targets, len(calibration.draw))]
        elif start.secure is not None and not calibration.public:
            factors, up = _from_secure_sum(model, targets, start, calibration, start.secure, sums)
        else:
            factors, *up = _from_contributions(model, targets, start, calibration, sums)
    ups = [] if calibration.public else up
    return Bases(as_received(factors), [*ups, bases_down(factors, num_clients)])


def _from_pooled(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: Start,
    calibration: Calibration,
    sums: MutableMapping[str, Tensor] | None,
) -> dict[str, Factors]:
    indices = [i for part in calibration.draw.values() for i in part]
    batches = calibration.batches_of(indices, start.batch_size)
    reduce, rule = reducer(start), step_rule(start)
    found = estimate_update(
        model, targets, batches, calibration.losses, reduce, learning_rate=1.0, rule=rule, sums=sums
    )
    return finished(found, start)


def _from_contributions(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: Start,
    calibration: Calibration,
    sums: MutableMapping[str, Tensor] | None,
) -> tuple[dict[str, Factors], Traffic]:
    """Each contributor's message is made and measured when the server is ready to take it in."""

    def messages() -> Iterator[tuple[Tensors, int, int]]:
        for client, indices in calibration.draw.items():
            message = contribute(model, targets, start, calibration, client, sums)
            yield message, len(indices), len(save(message))

    return combine(targets, start, messages())


def _from_secure_sum(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: Start,
    calibration: Calibration,
    rules: Rules,
    sums: MutableMapping[str, Tensor] | None,
) -> tuple[dict[str, Factors], list[Traffic]]:
    layout = summed_layout(targets, start)

    def summand_of(client: int) -> Summand:
        return Summand(layout.flatten(contribute(model, targets, start, calibration, client, sums)))

    total = secure_sum_here(rules, "contribute", 0, summand_of, [*calibration.draw], layout.size)
    return combine_total(targets, start, calibration.draw, total)


def summed_layout(targets: Mapping[str, nn.Module], start: Start) -> Layout:
    """Where each number of a contribution lies in the sum of all."""
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    return Layout.of(contribution(start).template(shapes, start))


def combine_total(
    targets: Mapping[str, nn.Module], start: Start, draw: Draw, total: Total
) -> tuple[dict[str, Factors], list[Traffic]]:
    """As `combine`, of a secure sum."""
    examples = sum(len(draw[client]) for client in total.clients)
    tensors = summed_layout(targets, start).unflatten(total.values)
    factors, _ = combine(targets, start, [(tensors, examples, 0)])
    what = contribution(start).what
    return factors, traffic_of([total], 0, len(draw), f"questions for {what}", what)


def contribute(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    start: Start,
    calibration: Calibration,
    client: int,
    sums: MutableMapping[str, Tensor] | None = None,
) -> Tensors:
    """What this client sends of its drawn examples, or, under privacy, of a Poisson sample of them."""
    indices = calibration.draw[client]
    if start.private is not None:
        indices = [indices[i] for i in start.private.sample(client)]
    everyone = sum(map(len, calibration.draw.values()))
    batches = partial(calibration.batches_of, indices)
    contributor = Contributor(batches, calibration.losses, everyone, client, sums)
    return contribution(start).send(model, targets, start, contributor)


def combine(
    targets: Mapping[str, nn.Module], start: Start, messages: Iterable[tuple[Tensors, int, int]]
) -> tuple[dict[str, Factors], Traffic]:
    """Start factors of messages as they come, each with its examples and its bytes; and what was sent."""
    kind, sent = contribution(start), Tally()

    def counted() -> Iterator[tuple[Tensors, int]]:
        for message, examples, size in messages:
            sent.add(size, sum(tensor.numel() for tensor in message.values()))
            yield message, examples

    factors = kind.bases({n: Shape(*features(layer)) for n, layer in targets.items()}, start, counted())
    return factors, sent.entry(kind.what, "up", sent.messages)


def _gradients_up(targets: Mapping[str, nn.Module], contributors: int) -> Traffic:
    """Computed from shapes: the simulation pools these gradients in one pass and has no such message."""
    numbers = contributors * sum(prod(features(layer)) for layer in targets.values())
    what = "gradients of the target layers"
    return Traffic(0, what, "up", contributors, 4 * numbers, numbers, measured=False)


def _bases_up(factors: Mapping[str, Factors]) -> Traffic:
    size, numbers = _sizes(factors, ("A", "B", "R"))
    return Traffic(0, "bases from the one contributor", "up", 1, size, numbers)


def bases_down(factors: Mapping[str, Factors], num_clients: int) -> Traffic:
    """R0 comes with the next round's broadcast."""
    size, numbers = _sizes(factors, ("A", "B"))
    return Traffic(0, "bases B and A", "down", num_clients, num_clients * size, num_clients * numbers)


def _sizes(factors: Mapping[str, Factors], names: Sequence[str]) -> tuple[int, int]:
    tensors = as_sent(factors, names)
    return len(save(tensors)), sum(t.numel() for t in tensors.values())


def as_sent(factors: Mapping[str, Factors], names: Sequence[str] = ("A", "B")) -> Tensors:
    """Bases as they travel."""
    tensors = {f"{n}.{f}": getattr(part, f) for n, part in factors.items() for f in names}
    return {name: tensor.to("cpu", SENT_AS).contiguous() for name, tensor in tensors.items()}


def as_received(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """B and A after their journey."""
    return {
        name: part._replace(B=orthonormal_again(part.B), A=orthonormal_again(part.A.T).T.contiguous())
        for name, part in factors.items()
    }


def orthonormal_again(columns: Tensor) -> Tensor:
    """The orthonormal fp32 columns nearest to what bfloat16 kept of these, in the same directions."""
    Q, R = torch.linalg.qr(columns.to(SENT_AS).float())
    return (Q * torch.where(R.diagonal() < 0, -1.0, 1.0)).contiguous()


@contextmanager
def estimating(model: nn.Module) -> Iterator[None]:
    """The state in which gradients of base weights are taken."""
    with only_these_train(model, ()), without_dropout(model):
        yield


@contextmanager
def only_these_train(model: nn.Module, names: Container[str]) -> Iterator[None]:
    """Inside the block all other parameters are frozen; afterwards every one is as it was."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def contribution(start: Start) -> Contribution:
    """The one that this start asks for, where each contributor sends its own."""
    if start.private is not None:
        return NOISED_SUMS
    if start.rule == "moments":
        return MOMENTS
    return SKETCH if start.upload == "sketch" else FACTORS
