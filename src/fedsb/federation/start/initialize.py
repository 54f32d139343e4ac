"""How a run starts: calibration examples, head warm-up, bases. Says what was used and what it costs to send.

Data flow: partition -> equal draw per client -> (head trained on them) -> first update -> SVD -> factors.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.bases import bases_from_weight, orthonormal_bases, principal_pair, weighted_directions
from fedsb.adapter.linear import dense_weight, features
from fedsb.common.seeding import numpy_generator, torch_generator
from fedsb.federation.start.contribution import in_frame
from fedsb.federation.start.from_gradients import Calibration, Draw, bases_from_gradients
from fedsb.federation.start.head_warmup import warm_up_here
from fedsb.federation.start.settings import Start
from fedsb.federation.traffic import Traffic
from fedsb.methods.method import Method


@dataclass(frozen=True)
class StartResult:
    """Start factors by layer, the one-time traffic, and which examples were used."""

    factors: dict[str, Factors]
    traffic: list[Traffic]
    draw: Draw


def needs_data(start: Start, method: Method, head: Mapping[str, Tensor]) -> bool:
    """Whether the start looks at examples at all."""
    return _estimates(start, method) or bool(head and start.head_warmup)


def _estimates(start: Start, method: Method) -> bool:
    return method.draw is None and bases_kind(start, method) == "gradient"


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
    share, remainder = divmod(samples, len(clients))
    draw = {}
    for place, client in enumerate(clients):
        count = min(share + (place < remainder), len(parts[client]))
        chosen = rng.choice(len(parts[client]), count, replace=False)
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
        steps, checks = start.head_warmup, (start.robust, start.secure)
        traffic += warm_up_here(model, head, steps, start.batch_size, calibration, *checks)
    if _estimates(start, method):
        factors, sent = bases_from_gradients(
            model, targets, start, calibration, num_clients=num_clients, sums=sums
        )
        traffic += sent
    else:
        factors = {name: _factors_without_data(name, layer, method, start) for name, layer in targets.items()}
    if "s" in method.trains(1):
        factors = {name: part._replace(s=torch.ones(start.heads)) for name, part in factors.items()}
    return StartResult(factors, traffic, calibration.draw)


def _factors_without_data(name: str, layer: nn.Module, method: Method, start: Start) -> Factors:
    rank, heads, generator = start.rank, start.heads, torch_generator(start.seed, "bases", name)
    if method.draw is not None:
        return method.draw(*features(layer), rank, generator=generator)
    if bases_kind(start, method) == "orthonormal":
        found = orthonormal_bases(*features(layer), rank, heads=heads, generator=generator)
        return in_frame(found, start, name)
    if method.bases == "principal":
        return principal_pair(dense_weight(layer), rank, scale=start.scale, generator=generator)
    keeps = method.singular_values
    weight = dense_weight(layer)
    found = bases_from_weight(weight, rank, heads=heads, singular_values=keeps, generator=generator)
    if start.singular_values and not keeps:
        found = weighted_directions(found, (found.B.T @ weight @ found.A.T).diagonal())
    return in_frame(found, start, name)
