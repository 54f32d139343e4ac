"""How a run starts: calibration examples, head warm-up, bases. Says what was used and what it costs to send.

Data flow: partition -> equal draw per client -> (head trained on them) -> first update -> SVD -> factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.bases import bases_from_weight, orthonormal_bases
from fedsb.adapter.linear import dense_weight, features
from fedsb.adapter.update_estimate import Rule
from fedsb.common.seeding import numpy_generator, torch_generator
from fedsb.federation import wire
from fedsb.federation.exchange import Layout
from fedsb.federation.start.contribution import GradientStart, PrivateStart
from fedsb.federation.start.from_gradients import Calibration, Draw, bases_from_gradients
from fedsb.federation.start.head_warmup import cache_base_outputs, train_head
from fedsb.federation.start.robust import Head, Robust, average_heads
from fedsb.federation.traffic import Traffic
from fedsb.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Head warm-up: fields as in the config's `method.init.head_warmup`."""

    rounds: int
    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the factors start: fields as in the config's `method` and `method.init`."""

    kind: str
    rule: Rule | Literal["moments"]
    samples: int
    batch_size: int
    upload: Literal["factors", "sketch", "whole"] = "factors"
    head_warmup: Warmup | None
    rank: int
    heads: int = 1
    step_size: float
    """Learning rate of the estimated update: the size of R0."""
    seed: int
    private: PrivateStart | None = None
    robust: Robust | None = None
    """What is done against clients that want to spoil the start; None: nothing."""


@dataclass(frozen=True)
class StartResult:
    """Start factors by layer, the one-time traffic, and which examples were used."""

    factors: dict[str, Factors]
    traffic: list[Traffic]
    draw: Draw


def needs_data(start: Start, method: Method, head: Mapping[str, Tensor]) -> bool:
    """Whether the start looks at examples at all."""
    return (method.draw is None and bases_kind(start, method) == "gradient") or bool(
        head and start.head_warmup
    )


def bases_kind(start: Start, method: Method) -> str:
    """Where a method without a draw of its own takes its bases from."""
    return start.kind if method.bases == "init" else method.bases


def draw_calibration(parts: Sequence[Sequence[int]], samples: int, *, seed: int) -> Draw:
    """About `samples` example indices in all, the same number from each client as far as it has them.

    With more clients than samples, as many random clients give one each.
    """
    rng = numpy_generator(seed, "calibration")
    clients = list(range(len(parts)))
    if samples < len(parts):
        clients = sorted(rng.choice(len(parts), samples, replace=False).tolist())
    each, rest = divmod(samples, len(clients))
    draw = {}
    for place, client in enumerate(clients):
        wanted = min(each + (place < rest), len(parts[client]))
        chosen = rng.choice(len(parts[client]), wanted, replace=False)
        draw[client] = sorted(parts[client][place] for place in chosen.tolist())
    return draw


def start_factors(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    head: Mapping[str, nn.Parameter],
    method: Method,
    start: Start,
    calibration: Calibration,
    *,
    num_clients: int,
    sums: MutableMapping[str, Tensor] | None = None,
) -> StartResult:
    """Train the head if asked to, make every layer's factors, and list the one-time traffic.

    The model carries no adapter yet; only its head is changed.
    """
    model.eval()
    traffic: list[Traffic] = []
    if head and start.head_warmup is not None:
        traffic += warm_up_head(model, head, start.head_warmup, start.batch_size, calibration, start.robust)
    factors, sent = _factors(model, targets, method, start, calibration, num_clients, sums)
    if "s" in method.trains(1):
        factors = {name: part._replace(s=torch.ones(start.heads)) for name, part in factors.items()}
    return StartResult(factors, traffic + sent, calibration.draw)


def warm_up_head(
    model: nn.Module,
    head: Mapping[str, nn.Parameter],
    warmup: Warmup,
    batch_size: int,
    calibration: Calibration,
    robust: Robust | None = None,
) -> list[Traffic]:
    """Federated averaging of the head alone over cached base outputs; its measured traffic."""
    layout = Layout.of(head)
    cached = {
        client: cache_base_outputs(model, calibration.batches_of(indices, batch_size))
        for client, indices in calibration.draw.items()
    }
    message_bytes = len(wire.pack(wire.Header("head-warm-up", 1, layout.digest, 0), layout.flatten(head)))
    for _ in range(warmup.rounds):
        broadcast = layout.flatten(head)

        def warmed_up(before: Tensor = broadcast) -> Iterator[Head]:
            for client, outputs in cached.items():
                layout.copy_into(head, before)
                train_head(
                    model,
                    head,
                    outputs,
                    calibration.losses,
                    steps=warmup.steps,
                    learning_rate=warmup.learning_rate,
                )
                yield Head(client, layout.flatten(head), len(calibration.draw[client]))

        layout.copy_into(head, average_heads(warmed_up(), broadcast, layout, robust))
    if calibration.public:
        return []
    return [
        _entry(
            "head warm-up", direction, len(cached), warmup.rounds * message_bytes, warmup.rounds * layout.size
        )
        for direction in ("down", "up")
    ]


def _factors(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    method: Method,
    start: Start,
    calibration: Calibration,
    num_clients: int,
    sums: MutableMapping[str, Tensor] | None,
) -> tuple[dict[str, Factors], list[Traffic]]:
    draw, rank, heads, seed = method.draw, start.rank, start.heads, start.seed
    kind = bases_kind(start, method)
    if draw is not None:
        return {n: draw(*features(m), rank, generator=_generator(seed, n)) for n, m in targets.items()}, []
    if kind == "orthonormal":
        return {
            n: orthonormal_bases(*features(m), rank, heads=heads, generator=_generator(seed, n))
            for n, m in targets.items()
        }, []
    if kind == "weights":
        return {
            n: bases_from_weight(dense_weight(m), rank, heads=heads, generator=_generator(seed, n))
            for n, m in targets.items()
        }, []
    how = gradient_start_of(start)
    return bases_from_gradients(model, targets, how, calibration, num_clients=num_clients, sums=sums)


def gradient_start_of(start: Start) -> GradientStart:
    """The part of the start that says how bases come from gradients."""
    return GradientStart(
        rule=start.rule,
        upload=start.upload,
        batch_size=start.batch_size,
        rank=start.rank,
        heads=start.heads,
        step_size=start.step_size,
        seed=start.seed,
        private=start.private,
        robust=start.robust is not None,
    )


def _entry(
    what: str, direction: Any, clients: int, bytes_each: int, numbers_each: int, measured: bool = True
) -> Traffic:
    return Traffic(0, what, direction, clients, clients * bytes_each, clients * numbers_each, measured)


def _generator(seed: int, layer: str) -> torch.Generator:
    return torch_generator(seed, "bases", layer)
