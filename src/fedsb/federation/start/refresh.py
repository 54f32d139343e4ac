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
from fedsb.federation.local_model import LocalModel, load_state
from fedsb.federation.server import broadcast
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import start_factors
from fedsb.federation.start.settings import Start
from fedsb.federation.state import BaseChange, ServerState
from fedsb.federation.traffic import Traffic

FOLDED = "cores to fold"
"""In the ledger, once for each refresh."""


class RefreshResult(NamedTuple):
    """The state over the new bases, those bases, and what it cost to send all that."""

    state: ServerState
    factors: dict[str, Factors]
    traffic: list[Traffic]


def refresh(
    local_model: LocalModel,
    state: ServerState,
    start: Start,
    calibration: Calibration,
    *,
    num_clients: int,
    seed: int,
    sums: MutableMapping[str, Tensor] | None = None,
) -> RefreshResult:
    """Fold and start again. The model holds `state` before, and the new state after."""
    cores = _cores_to_all(state, local_model, num_clients)
    total = fold_into_base(local_model)
    targets = {name: layer.base for name, layer in local_model.attached.layers.items()}
    method = local_model.exchange.method
    started = start_factors(
        local_model.model, targets, {}, method, start, calibration, num_clients=num_clients, sums=sums
    )
    local_model.start, local_model.rank, local_model.base_round = started.factors, 0, state.round
    seen = dict.fromkeys(range(num_clients), state.round)  # every client folds by itself
    base = BaseChange(total, changed=state.round, previous=state.base.changed, seen=seen)
    vector = _with_new_cores(local_model, state.vector, started.factors)
    state = ServerState(state.round, vector, base)
    load_state(local_model, state.vector, total, round_number=state.round, seed=seed)
    traffic = [cores, *(replace(entry, round=state.round) for entry in started.traffic)]
    return RefreshResult(state, started.factors, traffic)


def fold_into_base(local_model: LocalModel) -> dict[str, Tensor]:
    """Move every layer's update into its base weight; all that was added to W0 so far, by layer."""
    total = {name: layer.update().cpu() for name, layer in local_model.attached.layers.items()}
    set_base_updates(local_model.attached, total)
    for layer in local_model.attached.layers.values():
        layer.set_factor("R", torch.zeros(layer.R.shape))  # type: ignore[union-attr]
    return total


def _cores_to_all(state: ServerState, local_model: LocalModel, num_clients: int) -> Traffic:
    """Everybody folds, so everybody needs the last cores, the cohort's members or not."""
    size = num_clients * len(broadcast(state, local_model.exchange, 0, local_model.exchange.whole))
    numbers = num_clients * state.vector.numel()
    return Traffic(state.round, FOLDED, "down", num_clients, size, numbers)


def _with_new_cores(local_model: LocalModel, vector: Tensor, factors: Mapping[str, Factors]) -> Tensor:
    down = local_model.exchange.down(local_model.exchange.rank)
    named = down.unflatten(vector)
    return down.flatten(named | {f"{name}.R": part.R for name, part in factors.items()})  # type: ignore[arg-type]
