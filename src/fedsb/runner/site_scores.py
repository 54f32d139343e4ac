"""Scores at the clients in a run: asked, checked and noted in a round's line; their mean, worst and spread.

A line of metrics.jsonl then has, under `sites`, each client's number of test rows and its scores. Clients
without test rows have none, and neither have those whose answer was of no use; who those are was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from fedsb.common.printable import printable
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.scores import accepted_scores
from fedsb.federation.server import Arrived, Outcome
from fedsb.federation.traffic import Tally, total_bytes
from fedsb.runner.checkpoint import RunState
from fedsb.runner.clients import AskClients, MessageTo
from fedsb.runner.prepared import Prepared

Scores = dict[str, dict[str, float]]
"""Client, as text, -> its scores."""


def ask_for_scores(
    prepared: Prepared,
    exchange: Exchange,
    saved: RunState,
    record: dict[str, Any],
    ask: AskClients,
    message_for: MessageTo,
    *,
    what: str,
    round_number: int,
) -> Scores:
    """Ask every client, and book what was sent in the state and in the round's line; the scores.

    Args:
        what: they are called in the ledger.
        round_number: that the answers name.
    """
    sent, received, done = Tally(), Tally(), saved.state.round
    clients = range(len(prepared.data.client_tests))

    def message_to(client: int) -> bytes:
        message = message_for(client)
        sent.add(len(message), wire.count(message))
        return message

    def counted() -> Iterator[Outcome]:
        for outcome in ask(clients, message_to):
            if isinstance(outcome, Arrived):
                received.add(len(outcome.message), max(0, wire.count(outcome.message)))
            yield outcome

    scores = read_scores(prepared, exchange, counted(), round_number)
    traffic = [
        replace(sent.entry(f"models for {what}", "down", len(clients)), round=done),
        replace(received.entry(what, "up", len(clients)), round=done),
    ]
    saved.traffic += traffic
    if done:
        record["upload_bytes"] += total_bytes(traffic, direction="up")
        record["download_bytes"] += total_bytes(traffic, direction="down")
    return scores


def read_scores(
    prepared: Prepared, exchange: Exchange, outcomes: Iterable[Outcome], round_number: int
) -> Scores:
    """The scores of every client that has any; whose answer is of no use is told of."""
    scores: dict[int, dict[str, float]] = {}
    for outcome in outcomes:
        try:
            scores[outcome.client] = _accepted(prepared, exchange, outcome, scores, round_number)
        except UpdateRejected as reason:
            prepared.progress.client_ends(outcome.client, printable(reason))
    return {str(client): scores[client] for client in sorted(scores) if scores[client]}


def _accepted(
    prepared: Prepared, exchange: Exchange, outcome: Outcome, scores: Mapping[int, Any], number: int
) -> dict[str, float]:
    tests, totals = prepared.data.client_tests, prepared.data.task.totals
    assert totals is not None
    if outcome.client in scores or not 0 <= outcome.client < len(tests):
        raise UpdateRejected("it was not asked, or answered before")
    registered = len(tests[outcome.client])
    return accepted_scores(outcome, exchange, totals, round_number=number, registered=registered)


def mean_scores(scores: Scores) -> dict[str, float]:
    """The mean over sites of every score that all of them have, each site counting once. What is not finite
    is null in a checkpoint."""
    by_name = {
        name: [of_site.get(name) for of_site in scores.values()] for name in next(iter(scores.values()), {})
    }
    return {name: fmean(values) for name, values in by_name.items() if None not in values}  # type: ignore[arg-type]


def sites_summary(prepared: Prepared, saved: RunState) -> dict[str, Any] | None:
    """What summary.json says of the sites, of the last round in which they were scored; None if never."""
    lines = [line for line in saved.metrics if line.get("sites")]
    if not lines:
        return None
    scores, task = lines[-1]["sites"], prepared.data.task
    name = task.primary_metric
    values = {c: value for c, of_site in scores.items() if (value := of_site.get(name)) is not None}
    worst = (min if task.higher_is_better else max)(values, key=values.__getitem__, default=None)
    return {
        "round": lines[-1]["round"],
        "rows": {str(client): len(rows) for client, rows in enumerate(prepared.data.client_tests)},
        "scores": scores,
        "mean": mean_scores(scores),
        "worst": worst,
        "spread": max(values.values()) - min(values.values()) if values else None,
        "baselines": saved.metrics[0].get("baselines", {}),
    }
