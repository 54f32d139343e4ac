"""A round whose updates the server gets as one sum, of clients here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedsb.config import RunConfig
from fedsb.errors import RunFailed
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.here import Here, Integers, Work
from fedsb.federation.secure.member import MOST_SESSIONS
from fedsb.federation.secure.messages import STAGES
from fedsb.federation.secure.noise_shares import NoiseShares
from fedsb.federation.secure.rounds import aggregate_total
from fedsb.federation.secure.server import Ask, SecureSum, SpoiledSum, Total, new_terms, traffic_of
from fedsb.federation.secure.summands import ROUND_BITS, Summand, of_sum, of_update
from fedsb.federation.secure.terms import Rules, Terms
from fedsb.federation.server import Failed, Outcome, RoundReport, broadcasts
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Traffic, total_bytes
from fedsb.runner.arguments import local_training
from fedsb.runner.clients import AskClients, MessageTo, expecting
from fedsb.runner.prepared import Prepared
from fedsb.runner.private_run import PrivateRun

Closed = tuple[ServerState, RoundReport, list[Traffic]]


def secure_round(
    prepared: Prepared, exchange: Exchange, train: AskClients, state: ServerState, cohort: Sequence[int]
) -> Closed:
    """The state after a round over these clients, what happened, and what was sent.

    Args:
        train: asks clients for updates, under masks or, of clients here, as they are.

    Raises:
        RunFailed: fewer clients than the threshold stayed, or one after the other spoiled it; the state is
            still the one given.
    """
    sums, lost = list[SecureSum](), dict[int, str]()
    while True:
        sums.append(made := _sum_of(prepared, exchange, train, state, cohort))
        try:
            total = made.total()
        except SpoiledSum as spoiled:
            if len(sums) == MOST_SESSIONS:
                raise
            cohort, lost[spoiled.client] = [c for c in cohort if c != spoiled.client], str(spoiled)
            _charge_again(prepared, state.round + 1)
            continue
        break
    total.lost |= lost
    new_state, report = _closed(prepared, exchange, state, total, weights_of(prepared, cohort))
    asked = len(cohort) + len(lost)
    traffic = traffic_of(sums, state.round + 1, asked, "broadcast", "updates")
    report.upload_bytes = total_bytes(traffic, direction="up")
    return new_state, report, traffic


def _sum_of(
    prepared: Prepared, exchange: Exchange, train: AskClients, state: ServerState, cohort: Sequence[int]
) -> SecureSum:
    """A session over these clients that nobody was asked for yet."""
    rules, number = prepared.rules.secure, state.round + 1
    assert rules is not None
    heaviest = max(weights_of(prepared, cohort).values())
    question = broadcasts(state, exchange)(cohort[0], exchange.whole)
    terms, size = new_terms("train", number, cohort, heaviest), exchange.up(number, exchange.whole).size
    integers, coding = integers_of(prepared.privacy, rules, terms, size)
    if prepared.remote is None:
        ask: Ask = Here(rules, _work_here(prepared, exchange, train, question), integers, coding)
    else:
        ask = _elsewhere(prepared, train, number)
    verify = prepared.remote.verify if prepared.remote else None
    sent = wire.count(question)
    return SecureSum(ask, terms, rules, question, coding, size, sent, prepared.data.sites, verify)


def _charge_again(prepared: Prepared, number: int) -> None:
    """A session that failed after shares were given counts as a sum that was read."""
    private = prepared.privacy
    if private is not None and private.server_plan is not None:
        private.guard.charge(None, "round", number, private.server_plan.of_round(number))


def _closed(
    prepared: Prepared, exchange: Exchange, state: ServerState, total: Total, weights: Mapping[int, int]
) -> tuple[ServerState, RoundReport]:
    number, fewest = state.round + 1, prepared.rules.min_updates
    if len(total.clients) < fewest:
        raise RunFailed(
            f"round {number}: {len(total.clients)} usable updates, federation.min_updates is {fewest}; fix "
            "the clients and resume"
        )
    factor = _step(prepared, number) if prepared.config.sums_gradients else max(weights.values())
    expected, aggregation = sum(weights[client] for client in total.clients), prepared.rules.aggregation
    return aggregate_total(state, total, exchange, aggregation, factor=factor, expected=expected)


def _step(prepared: Prepared, number: int) -> float:
    """By which a sum of gradients over the number of rows it is drawn from is this round's step of SGD: over
    the rows expected in it, at the rate of the schedule."""
    training = local_training(prepared.config)
    return -training.learning_rate_at(number - 1, training.rounds) / training.epochs


def weights_of(prepared: Prepared, cohort: Iterable[int]) -> Mapping[int, int]:
    """Client -> its weight, as it registered."""
    by_examples = prepared.rules.weighting == "examples"
    return {client: len(prepared.data.parts[client]) if by_examples else 1 for client in cohort}


def integers_of(
    private: PrivateRun | None, rules: Rules, terms: Terms, size: int
) -> tuple[Integers, FixedPoint]:
    """(client, its update) -> what it adds to the round's sum, with its share of the noise where clients add
    that; and how numbers are written there."""
    plan = private.shared_plan if private is not None else None
    if private is None or plan is None:
        coding = FixedPoint(ROUND_BITS, rules.largest, len(terms.cohort))
        return (lambda client, summand: summand.integers(coding, terms.heaviest)), coding
    most_rows = terms.heaviest if private.sums_gradients else None
    shares, noise = NoiseShares(plan, len(terms.cohort), size, most_rows), private.noise

    def noised(client: int, summand: Summand) -> np.ndarray:
        return shares.integers(summand, noise.stream("share", terms.number, client, terms.session))

    return noised, shares.coding


def summand_of(config: RunConfig, question: bytes, answer: bytes, exchange: Exchange) -> Summand:
    """What a client's answer to a round's question adds to its sum."""
    if config.sums_gradients:
        return of_sum(answer)
    return of_update(question, answer, exchange, config.federation.weighting)


def _work_here(prepared: Prepared, exchange: Exchange, train: AskClients, question: bytes) -> Work:
    def work(clients: Sequence[int], question_to: MessageTo) -> Iterator[tuple[int, Summand] | Failed]:
        for outcome in train(clients, question_to):
            if isinstance(outcome, Failed):
                yield outcome
            else:
                yield outcome.client, summand_of(prepared.config, question, outcome.message, exchange)

    return work


def _elsewhere(prepared: Prepared, train: AskClients, number: int) -> Ask:
    remote, privacy = prepared.remote, prepared.privacy
    assert remote is not None
    work = expecting(privacy, train, number) if privacy is not None else train

    def ask(kind: str, clients: Sequence[int], message_to: MessageTo) -> Iterable[Outcome]:
        if kind in STAGES:
            return remote.ask(kind, clients, message_to)
        return work(clients, message_to)

    return ask
