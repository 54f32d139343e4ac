"""What the server keeps between rounds, and how a round's addition changes the base weights in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import LoraPair
from fedsb.federation.exchange import Exchange
from fedsb.federation.experts import ExpertState
from fedsb.methods.averaging.stack import factors_are_smaller
from fedsb.methods.method import BaseUpdate


@dataclass(frozen=True)
class BaseChange:
    """What was added to base weights, for methods that do that.

    Attributes:
        total: everything so far, by layer; empty if nothing was.
        last: the last addition, as it travels; `last_rank` is its rank.
        changed, previous: the rounds that made the last addition and the one before it.
        seen: client -> a round whose base weights it holds (0: untouched).
    """

    total: Mapping[str, Float[Tensor, "out in"]] = field(default_factory=dict)
    last: BaseUpdate = field(default_factory=dict)
    last_rank: int = 0
    changed: int = 0
    previous: int = 0
    seen: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerState:
    """All that changes between rounds: finished rounds, the vector to broadcast next, the base's change, of a
    mixture who has which experts, and what aggregations left to be kept, by name."""

    round: int
    vector: Float[Tensor, "size"]
    base: BaseChange = field(default_factory=BaseChange)
    experts: ExpertState | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)


def base_for(state: ServerState, client: int) -> tuple[int | None, int | None]:
    """`wire.Header.base` and `.needs` of a message to this client."""
    base, held = state.base, state.base.seen.get(client, 0)
    if held >= base.changed:
        return None, base.changed or None
    newest = base.changed == state.round  # else it was broadcast before, and a client that failed may have it
    if newest and held >= base.previous and base.last:
        return base.last_rank, base.previous or None
    return 0, None


def base_by_name(update: BaseUpdate) -> dict[str, Tensor]:
    """The update's tensors under the names of `Exchange.base`."""
    named: dict[str, Tensor] = {}
    for layer, value in update.items():
        if isinstance(value, LoraPair):
            named |= {f"{layer}.base.B": value.B, f"{layer}.base.A": value.A}
        else:
            named[f"{layer}.base"] = value
    return named


def changed_base(
    state: ServerState, exchange: Exchange, update: BaseUpdate | None, clients: Iterable[int]
) -> BaseChange:
    """Add this round's update; the clients that took part hold the weights of the round's beginning."""
    base = replace(state.base, seen={**state.base.seen, **dict.fromkeys(clients, state.round)})
    update = update or {}
    pairs = [value for value in update.values() if isinstance(value, LoraPair)]
    dense_rank = max(min(shape) for shape in exchange.layers.values())  # at which every layer travels dense
    rank = pairs[0].A.shape[0] if pairs else dense_rank
    if not update or rank == 0:
        return base if base.total else state.base
    dense = {name: _dense(value) for name, value in update.items()}
    sent = {n: v if factors_are_smaller(exchange.layers[n], rank) else dense[n] for n, v in update.items()}
    total = {name: base.total.get(name, 0) + value for name, value in dense.items()}
    return BaseChange(total, sent, rank, state.round + 1, base.changed, base.seen)


def _dense(value: LoraPair | Tensor) -> Float[Tensor, "out in"]:
    return value.B @ value.A if isinstance(value, LoraPair) else value
