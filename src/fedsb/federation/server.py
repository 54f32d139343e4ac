"""The server: its state, what it broadcasts, and one round as a function (state, updates) -> state.

It needs neither data nor the base model, and takes updates as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from fedsb.common.printable import printable, site_name
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange, Layout, Part
from fedsb.federation.experts import ExpertState
from fedsb.federation.state import ServerState, base_by_name, base_for, changed_base
from fedsb.federation.traffic import Traffic
from fedsb.methods.averaging.mean import region
from fedsb.methods.averaging.robust import NormBound
from fedsb.methods.method import Aggregation, Averaged, BaseUpdate, Upload

Weighting = Literal["examples", "uniform"]
PartOf = Callable[[int], Part]


@dataclass(frozen=True)
class Arrived:
    """A client's answer, as it came."""

    client: int
    message: bytes


@dataclass(frozen=True)
class Failed:
    """A client that did not answer, and why: whatever it said, a short text that can be printed."""

    client: int
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))


Outcome = Arrived | Failed


@dataclass
class RoundReport:
    """What happened in one round."""

    clients: list[int] = field(default_factory=list)
    rejected: list[dict[str, int | str]] = field(default_factory=list)
    scaled: list[int] = field(default_factory=list)
    """Clients whose update was scaled back to the norm bound."""
    upload_bytes: int = 0
    upload_parameters: int = 0
    loss_sum: float = 0.0
    num_examples: int = 0
    deviation: float | None = None
    """See `methods.Averaged.deviation`."""
    untrained: list[int] = field(default_factory=list)
    """Experts that no usable update trained."""
    second: list[Traffic] = field(default_factory=list)
    """Of the round's second exchange, where it has one."""

    @property
    def train_loss(self) -> float | None:
        """Mean of the clients' declared losses, weighted by examples."""
        return self.loss_sum / self.num_examples if self.num_examples else None


def broadcasts(state: ServerState, exchange: Exchange) -> Callable[[int, Part], bytes]:
    """(client, part) -> the message that opens its next round: what it lacks of the state, at its rank.

    The newest message is kept, and given to every client that lacks the same.
    """
    message = lru_cache(maxsize=1)(partial(_broadcast, state, exchange))
    untouched, needs_cores = not state.base.changed, exchange.needs_cores(state.round + 1)

    def message_for(client: int, part: Part) -> bytes:
        lacks_cores = needs_cores and state.experts is not None and client not in state.experts.holding
        return message(part, *((None, None) if untouched else base_for(state, client)), lacks_cores)

    return message_for


def broadcast(state: ServerState, exchange: Exchange, client: int, part: Part) -> bytes:
    """As `broadcasts`, for one client."""
    return broadcasts(state, exchange)(client, part)


def _broadcast(
    state: ServerState,
    exchange: Exchange,
    part: Part,
    base_rank: int | None,
    needs: int | None,
    with_cores: bool,
) -> bytes:
    number = state.round + 1
    layout = exchange.message(number, part, base_rank, with_cores=with_cores)
    named = exchange.down(exchange.rank).unflatten(state.vector)
    for name, shape in exchange.beside(number).entries:
        named[name] = state.memory.get(name, torch.zeros(shape))
    down = exchange.broadcast(number, part)
    held = {name: named[name][region(name, shape, part.experts)] for name, shape in down.entries}
    numbers = [down.flatten(held)]
    if base_rank is not None:
        update: BaseUpdate = state.base.last if base_rank else {**state.base.total}
        numbers.append(exchange.base(base_rank).flatten(base_by_name(update)))
    if with_cores:
        assert state.experts is not None
        cores = {f"{layer}.R": core for layer, core in state.experts.cores.items()}
        numbers.append(exchange.cores().flatten(cores))
    header = wire.Header(
        exchange.method.name,
        number,
        layout.digest,
        base=base_rank,
        needs=needs,
        cores=True if with_cores else None,
    )
    return wire.pack(header, torch.cat(numbers))


def aggregate(
    state: ServerState,
    outcomes: Iterable[Outcome],
    exchange: Exchange,
    *,
    weighting: Weighting,
    part_of: PartOf | None = None,
    aggregation: Aggregation | None = None,
    fewest: int = 1,
    bound: NormBound | None = None,
    registered: Mapping[int, int] | None = None,
    sites: Sequence[str] = (),
    start: Mapping[str, Tensor] | None = None,
    second: Callable[[Averaged, RoundReport], Averaged] | None = None,
) -> tuple[ServerState, RoundReport]:
    """Take in the cohort's outcomes one at a time and close the round.

    A client that failed, or whose update is refused, is left out and named in the report. Of several answers
    of one client the first counts.

    Args:
        aggregation: in place of the method's own.
        fewest: usable updates without which the round fails; 0 if the aggregation can do without any.
        bound: on how far an update may lie from the broadcast; the method must send all that it trains.
        registered: the examples of each client of the cohort, as they were before the run: nobody else is
            listened to, and an update that counts others is refused. None: anybody, and any count.
        sites: what clients are called, for messages.
        start: see `AggregationInputs`.
        second: the round's second exchange (`second_exchange.after_second_exchange`).

    Raises:
        RunFailed: no update could be used, or too few; the state given is still the current one.
    """
    report, aggregation = RoundReport(), aggregation or exchange.method.aggregation
    frame = exchange.frame(state.round + 1, state.vector)._replace(start=start or {}, memory=state.memory)
    accumulator = aggregation.start(frame)
    layout_of = cache(partial(exchange.up, state.round + 1))
    before_of = cache(partial(_before, state, exchange))
    heard: set[int] = set()
    for outcome in outcomes:
        try:
            _check_sender(outcome.client, heard, registered)
            part = part_of(outcome.client) if part_of else exchange.whole
            header, vector = accept(outcome, state, exchange, layout_of(part), report, registered)
            if bound is not None:
                vector = _bounded(outcome.client, vector, before_of(part), bound, report)
        except UpdateRejected as reason:
            report.rejected.append({"client": outcome.client, "reason": printable(reason)})
            continue
        weight = float(header.num_examples) if weighting == "examples" else 1.0
        weights = _of_experts(state, outcome.client, part, weighting)
        upload = Upload(layout_of(part).view(vector), vector, weight, part.blocks, outcome.client, weights)
        accumulator = aggregation.add(accumulator, upload)
        _note(report, outcome.client, header)
    if len(report.clients) < fewest:
        raise RunFailed(_too_few(state.round + 1, report, fewest, sites))
    averaged = aggregation.finish(accumulator)
    if second is not None:
        averaged = second(averaged, report)
    return close_round(state, exchange, averaged, report, part_of)


def close_round(
    state: ServerState,
    exchange: Exchange,
    averaged: Averaged,
    report: RoundReport,
    part_of: PartOf | None = None,
) -> tuple[ServerState, RoundReport]:
    """The state after a round that gave this."""
    report.deviation = averaged.deviation
    down = exchange.down(exchange.rank)
    named = down.unflatten(state.vector) | dict(averaged.tensors)
    vector = down.flatten({name: named[name] for name, _ in down.entries})
    base = state.base
    if averaged.base_update or base.changed:
        base = changed_base(state, exchange, averaged.base_update, report.clients)
    experts = _experts_after(state, exchange, report, part_of)
    memory = {**state.memory, **averaged.memory}
    return ServerState(state.round + 1, vector, base, experts, memory), report


def _of_experts(
    state: ServerState, client: int, part: Part, weighting: Weighting
) -> tuple[float, ...] | None:
    """How much a client's part of each of its experts counts; None where it has one core."""
    if part.experts is None or state.experts is None:
        return None
    counts = state.experts.counts.get(client)
    if weighting == "uniform" or not counts:
        return (1.0,) * len(part.experts)
    return tuple(float(counts[expert]) for expert in part.experts)


def _experts_after(
    state: ServerState, exchange: Exchange, report: RoundReport, part_of: PartOf | None
) -> ExpertState | None:
    """Which experts nobody trained, into the report; and who has all cores now."""
    experts = state.experts
    if experts is None or exchange.experts is None or part_of is None:
        return experts
    if exchange.routes_hard(state.round + 1):
        trained = {expert for client in report.clients for expert in part_of(client).experts or ()}
        report.untrained = sorted(set(range(exchange.experts.count)) - trained)
    if not exchange.needs_cores(state.round + 1):
        return experts
    failed = {int(rejected["client"]) for rejected in report.rejected}  # perhaps as it lost them
    return replace(experts, holding=(experts.holding | set(report.clients)) - failed)


def _check_sender(client: int, heard: set[int], registered: Mapping[int, int] | None) -> None:
    if registered is not None and client not in registered:
        raise UpdateRejected("it was not asked in this round")
    if client in heard:
        raise UpdateRejected("it answered before in this round")
    heard.add(client)


def accept(
    outcome: Outcome,
    state: ServerState,
    exchange: Exchange,
    layout: Layout,
    report: RoundReport,
    registered: Mapping[int, int] | None,
) -> tuple[wire.Header, Tensor]:
    """Header and numbers of an answer that can be used; its size is added to the report.

    Raises:
        UpdateRejected: it cannot be.
    """
    if isinstance(outcome, Failed):
        raise UpdateRejected(outcome.reason)
    report.upload_bytes += len(outcome.message)
    header, vector = wire.unpack(outcome.message, exchange.upload_dtype, layout.size)
    report.upload_parameters += vector.numel()
    expected = wire.Header(exchange.method.name, state.round + 1, layout.digest, outcome.client)
    wire.check(header, vector, expected=expected, size=layout.size)
    if header.num_examples < 1:
        raise UpdateRejected(f"wrong num_examples: expected at least 1, found {header.num_examples}")
    if registered is not None and header.num_examples != (known := registered[outcome.client]):
        raise UpdateRejected(
            f"wrong num_examples: this client registered {known} examples, its update counts "
            f"{header.num_examples}"
        )
    return header, vector


def _before(state: ServerState, exchange: Exchange, part: Part) -> Tensor:
    """What was broadcast of the numbers in an upload of this part."""
    return sent_before(exchange, state.round + 1, state.vector, part)


def sent_before(exchange: Exchange, number: int, vector: Tensor, part: Part | None = None) -> Tensor:
    """Of what is shared as this round begins, the numbers of an upload of this part (None: of all)."""
    part = part or exchange.whole
    named, layout = exchange.down(exchange.rank).unflatten(vector), exchange.up(number, part)
    return torch.cat([named[n][region(n, shape, part.blocks)].reshape(-1) for n, shape in layout.entries])


def _bounded(client: int, vector: Tensor, before: Tensor, bound: NormBound, report: RoundReport) -> Tensor:
    scaled, norm = bound.within(vector, before)
    if norm <= bound.largest:
        return vector
    if bound.over == "reject":
        raise UpdateRejected(
            f"update too large: it lies {norm:.4g} from the broadcast, federation.robust.norm_bound is "
            f"{bound.largest:g}"
        )
    report.scaled.append(client)
    return scaled


def _note(report: RoundReport, client: int, header: wire.Header) -> None:
    report.clients.append(client)
    if header.train_loss is not None and math.isfinite(header.train_loss):
        report.loss_sum += header.train_loss * header.num_examples
        report.num_examples += header.num_examples


def _too_few(number: int, report: RoundReport, fewest: int, sites: Sequence[str]) -> str:
    named = ((site_name(sites, r["client"]), r["reason"]) for r in report.rejected[:3])
    reasons = "; ".join(f"{name}: {reason}" for name, reason in named)
    reasons += f" and {len(report.rejected) - 3} more" if len(report.rejected) > 3 else ""
    if not report.clients:
        return f"round {number}: no client's update could be used ({reasons})"
    return (
        f"round {number}: {len(report.clients)} usable updates, federation.min_updates is {fewest} "
        f"({reasons}); fix the clients and resume"
    )
