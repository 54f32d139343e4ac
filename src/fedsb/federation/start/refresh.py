"""New bases during a run: fold B R A into the base weights, and start again from a fresh estimate.

    every client: W0 + s B R A (it has B and A, and gets the last R)        -> zero core
    clients' gradients on the changed model -> SVD -> new B, A, R0          -> the next round trains R there

The traffic of both steps is booked under the round after which it happens.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.adapter.attached import set_base_updates
from fedsb.federation.local_model import Trainable, adopt
from fedsb.federation.server import broadcast
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import Start, start_factors
from fedsb.federation.state import ServerState, with_base
from fedsb.federation.traffic import Entry


class Refreshed(NamedTuple):
    """The state over the new bases, those bases, and what it cost to send all that."""

    state: ServerState
    factors: dict[str, Factors]
    traffic: list[Entry]


def refresh(
    trainable: Trainable,
    state: ServerState,
    start: Start,
    calibration: Calibration,
    *,
    num_clients: int,
    seed: int,
    sums: MutableMapping[str, Tensor] | None = None,
) -> Refreshed:
    """Fold and start anew. The model holds `state` before, and the new state after."""
    cores = _cores_to_all(state, trainable, num_clients)
    total = fold_into_base(trainable)
    targets = {name: layer.base for name, layer in trainable.attached.layers.items()}
    method = trainable.exchange.method
    started = start_factors(
        trainable.model, targets, {}, method, start, calibration, num_clients=num_clients, sums=sums
    )
    trainable.start, trainable.rank, trainable.base_round = started.factors, 0, state.round
    state = with_base(state, total, clients=range(num_clients))
    state = replace(state, vector=_with_new_cores(trainable, state.vector, started.factors))
    adopt(trainable, state.vector, total, round_number=state.round, seed=seed)
    traffic = [cores, *(replace(entry, round=state.round) for entry in started.traffic)]
    return Refreshed(state, started.factors, traffic)


def fold_into_base(trainable: Trainable) -> dict[str, Tensor]:
    """Move every layer's update into its base weight; all that was added to W0 so far, by layer."""
    total = {name: layer.update().cpu() for name, layer in trainable.attached.layers.items()}
    set_base_updates(trainable.attached, total)
    for layer in trainable.attached.layers.values():
        layer.put("R", torch.zeros(layer.R.shape))  # type: ignore[union-attr]
    return total


def _cores_to_all(state: ServerState, trainable: Trainable, num_clients: int) -> Entry:
    """Everybody folds, so everybody needs the last cores, the cohort's members or not."""
    message = broadcast(state, trainable.exchange, 0, trainable.exchange.whole)
    what, size = "cores to fold", len(message)
    return Entry(
        state.round, what, "down", num_clients, num_clients * size, num_clients * state.vector.numel()
    )


def _with_new_cores(trainable: Trainable, vector: Tensor, factors: Mapping[str, Factors]) -> Tensor:
    down = trainable.exchange.down(trainable.exchange.rank)
    named = down.unflatten(vector)
    return down.flatten(named | {f"{name}.R": part.R for name, part in factors.items()})  # type: ignore[arg-type]
