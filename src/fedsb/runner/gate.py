"""Between the stages of a mixture: its gate, made of all clients' sums or near zero; groups of clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fedsb.adapter.routing import Statistics, gate_from
from fedsb.config import RunConfig
from fedsb.config.method import gate_after
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.clusters import clusters
from fedsb.federation.exchange import Exchange
from fedsb.federation.experts import Counts
from fedsb.federation.server import Arrived, Outcome
from fedsb.federation.state import ServerState
from fedsb.federation.statistics import POOLED, statistics_question, summed
from fedsb.federation.traffic import Tally
from fedsb.runner.checkpoint import RunState
from fedsb.runner.clients import AskClients
from fedsb.runner.prepare_experts import with_counts
from fedsb.runner.prepared import Prepared


def opens_gate(config: RunConfig, state: ServerState) -> bool:
    """Whether the gate is to be made now."""
    experts = state.experts
    return experts is not None and not experts.opened and state.round >= gate_after(config)


def open_gate(prepared: Prepared, exchange: Exchange, ask: AskClients, saved: RunState) -> None:
    """Make the gate, and keep the cores as they are now where clients will need them."""
    state, settings = saved.state, prepared.config.method.experts
    assert state.experts is not None
    assert settings is not None
    named = exchange.down(exchange.rank).unflatten(state.vector)
    later = range(state.round + 1, prepared.rules.rounds + 1)
    keeps = any(exchange.needs_cores(number) for number in later)
    cores = {layer: named[f"{layer}.R"].clone() for layer in exchange.layers} if keeps else {}
    experts = replace(state.experts, opened=True, cores=cores)
    if settings.start == "statistics":
        prepared.progress.stage("making the gate from the clients' statistics")
        gates = _asked(prepared, exchange, ask, saved)
        experts = replace(experts, gate=gates.pop(POOLED, None))
        named |= {f"{layer}.G": gate for layer, gate in gates.items()}
    saved.state = replace(state, vector=exchange.down(exchange.rank).flatten(named), experts=experts)


def _asked(prepared: Prepared, exchange: Exchange, ask: AskClients, saved: RunState) -> dict[str, Tensor]:
    """Each layer's gate from all clients' sums; what was sent is booked as sent once."""
    state, parts = saved.state, prepared.data.parts
    assert state.experts is not None
    sent, received, question = Tally(), Tally(), statistics_question(state, exchange)
    sent.add(len(question), wire.count(question), messages=len(parts))
    registered = {client: len(part) for client, part in enumerate(parts)}
    answers = ask(list(registered), lambda client: question)
    sums = summed(answers, state, exchange, registered, received, prepared.progress.client_ends)
    saved.traffic += [
        sent.entry("mean for statistics", "down", len(parts)),
        received.entry("statistics", "up", len(parts)),
    ]
    _warn(prepared, next(iter(sums.values())))
    return {name: gate_from(total) for name, total in sums.items()}


def _warn(prepared: Prepared, statistics: Statistics) -> None:
    """Say which experts have no rows that the gate could know them by."""
    names = [prepared.data.experts[e] for e, count in enumerate(statistics.counts.tolist()) if not count]
    if names:
        prepared.progress.stage(
            f"no client gave statistics of {', '.join(names)}: the gate has the mean of all for them"
        )


# Groups of clients, found by their cores


def finds_groups(config: RunConfig, number: int) -> bool:
    """Whether the groups are found from the answers of this round."""
    experts = config.method.experts
    return experts is not None and experts.count is not None and number == experts.warmup_rounds


def find_groups(
    prepared: Prepared, exchange: Exchange, state: ServerState, outcomes: Sequence[Outcome]
) -> ServerState:
    """The state with every client's expert: its group by the change of its core.

    A client that gave no usable answer gets the expert of most others.

    Raises:
        RunFailed: too few answered for so many groups.
    """
    settings = prepared.config.method.experts
    assert settings is not None
    assert settings.count is not None
    assert state.experts is not None
    changes = {}
    for outcome in outcomes:
        if isinstance(outcome, Arrived) and (change := _change(exchange, state, outcome)) is not None:
            changes[outcome.client] = change.numpy()
    groups = clusters(changes, settings.count)
    largest = Counter(groups.values()).most_common(1)[0][0]
    counts: dict[int, Counts] = {
        client: {groups.get(client, largest): len(part)} for client, part in enumerate(prepared.data.parts)
    }
    return replace(state, experts=with_counts(state.experts, counts))


def _change(exchange: Exchange, state: ServerState, outcome: Arrived) -> Tensor | None:
    """How far a client moved the one core it was sent, over all layers; None if its answer is of no use."""
    part = exchange.whole._replace(experts=(0,))
    layout = exchange.up(state.round + 1, part)
    try:
        header, vector = wire.unpack(outcome.message, exchange.upload_dtype, layout.size)
        expected = wire.Header(exchange.method.name, state.round + 1, layout.digest, outcome.client)
        wire.check(header, vector, expected=expected, size=layout.size)
    except UpdateRejected:
        return None  # the aggregation says why
    named, cores = exchange.down(exchange.rank).unflatten(state.vector), exchange.cores((0,))
    before = cores.flatten({name: named[name][:1] for name, _ in cores.entries})
    return vector[: cores.size] - before


def with_equal_experts(exchange: Exchange, state: ServerState) -> ServerState:
    """The state with the first expert's cores for all experts: before groups are found there is one."""
    down = exchange.down(exchange.rank)
    named = down.unflatten(state.vector)
    named |= {f"{n}.R": named[f"{n}.R"][:1].expand_as(named[f"{n}.R"]) for n in exchange.layers}
    return replace(state, vector=down.flatten(named))
