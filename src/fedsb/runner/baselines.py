"""What a site is compared with: the same method trained by it alone, and on all rows in one place.

Both begin where the run begins and train as many rounds, with the schedule of the run; nothing is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from fedsb.adapter.attached import set_base_updates
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.second_exchange import after_second_exchange
from fedsb.federation.server import Arrived, Outcome, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.federation.training import ClientFailed, OnStep
from fedsb.runner.clients import LocalClient, simulate_cohort
from fedsb.runner.prepare_data import Data


def score_alone(
    client: LocalClient, rounds: int, question: bytes, on_step: OnStep = lambda num_examples: None
) -> bytes:
    """The scores, on its own test rows, of a model that this client alone trained from the run's start.

    Args:
        question: the broadcast of round 1.

    Raises:
        UpdateRejected: the question is none.
        ClientFailed: training failed.
    """
    alone = replace(client, kept={})
    try:
        return alone.score(_trained_alone(alone, rounds, question, on_step))
    finally:
        _forget(client)


def score_pooled(
    data: Data, client_of: Callable[[int], LocalClient], rounds: int, question: bytes
) -> Iterator[Outcome]:
    """Every client's scores of a model that all training rows trained in one place, as outcomes.

    Where something stays with clients, everybody has what all rows made of it.
    """
    everybody = range(len(data.parts))
    rows = [data.train[i] for part in data.parts for i in part]
    one = replace(client_of(0), examples=rows, kept={})
    try:
        trained = _trained_alone(one, rounds, question, lambda num_examples: None)
        yield from simulate_cohort(everybody, lambda c: replace(client_of(c), kept=one.kept).score(trained))
    finally:
        _forget(one)


def _trained_alone(client: LocalClient, rounds: int, question: bytes, on_step: OnStep) -> bytes:
    """The broadcast after so many rounds of a federation of this client and nobody else."""
    exchange = client.local_model.exchange
    whole, layout = exchange.whole, exchange.broadcast(1, exchange.whole)
    header, vector = wire.unpack(question, size=layout.size)
    wire.check(header, vector, expected=wire.Header(exchange.method.name, 1, layout.digest), size=layout.size)
    if client.part_of(1) != whole or header.base is not None:
        raise UpdateRejected("a client that holds a part of the adapter has no baseline")
    state = ServerState(0, vector.clone())
    for _ in range(rounds):
        answer = client.answer(broadcast(state, exchange, client.client, whole), on_step)
        again = partial(
            after_second_exchange,
            state=state,
            exchange=exchange,
            ask=lambda clients, question: [Arrived(client.client, client.answer(question))],
            weighting="uniform",
        )
        state, report = aggregate(
            state,
            [Arrived(client.client, answer)],
            exchange,
            weighting="uniform",
            fewest=0,
            start=exchange.started(client.local_model.start),
            second=again if exchange.method.follow_up else None,
        )
        if report.rejected:
            raise ClientFailed(str(report.rejected[0]["reason"]))
    return broadcast(state, exchange, client.client, whole)


def _forget(client: LocalClient) -> None:
    """The model's base weights as they were before."""
    set_base_updates(client.local_model.attached, {})
    client.local_model.base_round = 0
