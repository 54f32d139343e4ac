"""One round of a run: broadcast -> clients train -> aggregate -> evaluate -> record."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fedsb.adapter.routing import routing_of
from fedsb.common.seeding import derive
from fedsb.federation import wire
from fedsb.federation.exchange import Part
from fedsb.federation.local_model import LocalModel, load_state
from fedsb.federation.second_exchange import after_second_exchange, forget
from fedsb.federation.server import Outcome, RoundReport, aggregate, broadcasts
from fedsb.federation.start.refresh import refresh
from fedsb.federation.start.saturation import change_per_rate
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Traffic, total_bytes
from fedsb.methods import Aggregation, Averaged
from fedsb.methods.averaging.beside import CONTROL, MOMENTS, added_by, replaced, with_beside
from fedsb.privacy.client_level import ClientRelease
from fedsb.runner.arguments import RoundRules, local_training
from fedsb.runner.checkpoint import RunState
from fedsb.runner.client_privacy import server_release
from fedsb.runner.clients import AskClients, expecting, part_of
from fedsb.runner.external_experts import folders_of
from fedsb.runner.gate import find_groups, finds_groups, open_gate, opens_gate, with_equal_experts
from fedsb.runner.prepared import Prepared, calibration_of
from fedsb.runner.secure_round import secure_round
from fedsb.runner.site_scores import ask_for_scores, mean_scores, read_scores
from fedsb.runner.spill import SpilledTensors

Sent = Counter[str]
"""What a round's broadcasts came to: bytes and parameters."""


@dataclass(frozen=True)
class Session:
    """A prepared run with its adapter in the model, and a way to its clients."""

    prepared: Prepared
    local_model: LocalModel
    ask_clients: AskClients
    ask_statistics: AskClients
    """The sums that a mixture's gate is made of."""
    ask_scores: AskClients
    """Scores at the clients of the model in a broadcast."""
    ask_alone: AskClients
    """Scores at each client of what it trains alone, from the first broadcast."""
    pooled: Callable[[bytes], Iterable[Outcome]] | None
    """First broadcast -> scores at the clients of what all rows train in one place; None where those are
    elsewhere."""


def play_round(session: Session, saved: RunState, number: int, cohort: Sequence[int]) -> dict[str, Any]:
    """The run after one more round; its line of metrics.jsonl.

    Raises:
        RunFailed: too few updates could be used.
    """
    prepared, rules = session.prepared, session.prepared.rules
    privacy, progress = prepared.privacy, prepared.progress
    progress.round_begins(number, rules.rounds, cohort)
    clip_norm, before = saved.metrics[-1].get("clip_norm"), saved.state.vector
    release = server_release(privacy, number, clip_norm) if privacy else None
    if rules.secure is not None:
        saved.state, report, traffic = secure_round(
            prepared, session.local_model.exchange, session.ask_clients, saved.state, cohort
        )
    else:
        saved.state, report, traffic = _plain_round(session, saved, number, cohort, release)
    saved.traffic += traffic
    downloaded = sum(entry.bytes for entry in traffic if entry.direction == "down")
    exchange, experts = session.local_model.exchange, saved.state.experts
    if experts is not None and not experts.counts and not folders_of(prepared.config):
        saved.state = with_equal_experts(exchange, saved.state)
    if experts is not None:
        make_gate(session, saved)
    put_state(session, saved)
    scored = number in rules.scored_after
    record = record_of(number, score(prepared) if scored else {}, report, downloaded)
    if scored:
        score_sites(session, saved, record)
    if report.untrained:
        record["untrained"] = [prepared.data.experts[expert] for expert in report.untrained]
    if privacy is not None:
        record["epsilon"] = privacy.epsilon()
    if release is not None:
        record["clip_norm"] = release.next_clip_norm
    if rules.refresh_when is not None:
        record["core_change"] = change_per_rate(
            session.local_model.exchange, before, saved.state.vector, _summed_rates(prepared, number, report)
        )
    if refresh_due(saved, rules, record):
        refresh_bases(session, saved, record)
    return record


def _summed_rates(prepared: Prepared, number: int, report: RoundReport) -> float:
    """The learning rates of a client's steps in this round, added up; the mean of those whose updates are in
    the average, as they weigh there."""
    training, sizes = local_training(prepared.config), [len(prepared.data.parts[c]) for c in report.clients]
    weights = sizes if prepared.rules.weighting == "examples" else [1] * len(sizes)
    rates = (w * training.rates(number, size) for w, size in zip(weights, sizes, strict=True))
    return sum(rates) / sum(weights)


def _aggregation(prepared: Prepared) -> Aggregation:
    """The run's, and what is made of what travels beside trained numbers."""
    rules, config = prepared.rules, prepared.config
    aggregation = rules.aggregation
    if config.training.moments == "averaged":
        aggregation = with_beside(aggregation, MOMENTS, replaced)
    if not config.federation.control_variates:
        return aggregation
    sizes = [float(len(part)) for part in prepared.data.parts]
    total = sum(sizes) if rules.weighting == "examples" else float(len(sizes))
    return with_beside(aggregation, (CONTROL,), added_by(total))


def _second(session: Session, state: ServerState) -> Callable[[Averaged, RoundReport], Averaged]:
    """The second exchange of a round that begins at this state; the first paid for what leaves in it."""
    prepared = session.prepared
    parts = prepared.data.parts
    return partial(
        after_second_exchange,
        state=state,
        exchange=session.local_model.exchange,
        ask=lambda clients, question: session.ask_clients(clients, lambda client: question),
        weighting=prepared.rules.weighting,
        registered={client: len(part) for client, part in enumerate(parts)},
    )


def _plain_round(
    session: Session, saved: RunState, number: int, cohort: Sequence[int], release: ClientRelease | None
) -> tuple[ServerState, RoundReport, list[Traffic]]:
    """A round in which the server takes in each client's update."""
    prepared, rules, exchange = session.prepared, session.prepared.rules, session.local_model.exchange
    held, sent = _parts(prepared, saved.state, cohort, number), Sent()
    outcomes = _ask(session, saved.state, held, sent)
    if saved.state.experts is not None and finds_groups(prepared.config, number):
        outcomes = list(outcomes)
        saved.state = find_groups(prepared, exchange, saved.state, outcomes)
        held = _parts(prepared, saved.state, cohort, number)
    state, report = aggregate(
        saved.state,
        outcomes,
        exchange,
        weighting=rules.weighting,
        part_of=held.__getitem__,
        aggregation=release.wrap(rules.aggregation) if release else _aggregation(prepared),
        fewest=0 if release else rules.min_updates,
        bound=rules.norm_bound,
        registered={client: len(prepared.data.parts[client]) for client in cohort},
        sites=prepared.data.sites,
        start=exchange.started(saved.factors),
        second=_second(session, saved.state) if prepared.method.follow_up else None,
    )
    for own in saved.kept.values() if report.second else ():
        forget(own)
    return (
        state,
        report,
        [
            Traffic(number, "broadcast", "down", len(cohort), sent["bytes"], sent["parameters"]),
            Traffic(number, "updates", "up", len(cohort), report.upload_bytes, report.upload_parameters),
            *report.second,
        ],
    )


def refresh_due(saved: RunState, rules: RoundRules, record: Mapping[str, Any]) -> bool:
    """Whether new bases are to follow the last finished round, whose line is `record`."""
    done, every, when = saved.state.round, rules.refresh_every, rules.refresh_when
    if not saved.factors_round < done < rules.rounds:
        return False
    if when is not None:
        lines = [*saved.metrics[: record["round"]], record]
        return when.reached([line["core_change"] for line in lines if line["round"] > saved.factors_round])
    return every is not None and done % every == 0


def make_gate(session: Session, saved: RunState) -> None:
    """Open the gate of a mixture whose experts are trained, if it has none yet."""
    if opens_gate(session.prepared.config, saved.state):
        open_gate(session.prepared, session.local_model.exchange, session.ask_statistics, saved)


def _parts(prepared: Prepared, state: ServerState, cohort: Sequence[int], number: int) -> dict[int, Part]:
    """What each client of the cohort holds in this round."""
    experts = state.experts
    return {
        client: part_of(prepared.config, client, experts.held_by(client) if experts else (), number)
        for client in cohort
    }


def put_state(session: Session, saved: RunState) -> None:
    """Put the state into the model."""
    state, seed = saved.state, session.prepared.config.seed
    if state.experts is not None and (routing := routing_of(session.local_model.model)) is not None:
        routing.cores, routing.gate, routing.usage = (
            state.experts.cores,
            state.experts.gate,
            state.experts.usage,
        )
    load_state(session.local_model, state.vector, state.base.total, round_number=state.round, seed=seed)


def score_sites(session: Session, saved: RunState, record: dict[str, Any]) -> None:
    """Score the state at the clients, where the config wants that, into the round's line. Without test rows
    in one place their mean is the round's score. Baselines are scored once, before the first round."""
    prepared, exchange = session.prepared, session.local_model.exchange
    config, state = prepared.config, saved.state
    if not prepared.rules.at_clients:
        return
    held = _parts(prepared, state, range(len(prepared.data.parts)), state.round + 1)
    message_for, ask = broadcasts(state, exchange), partial(ask_for_scores, prepared, exchange, saved, record)

    def message_to(client: int) -> bytes:
        return message_for(client, held[client])

    number, ask_scores, privacy = state.round + 1, session.ask_scores, prepared.privacy
    if prepared.remote is not None and privacy is not None:
        ask_scores = expecting(privacy, ask_scores, state.round, "score")
    record["sites"] = ask(ask_scores, message_to, what="scores", round_number=number)
    if privacy is not None:
        record["epsilon"] = privacy.epsilon()
    if not prepared.rules.on_test_rows:
        record["eval"] = mean_scores(record["sites"])
    if state.round == 0 and config.evaluation.baselines:
        last = prepared.rules.rounds + 1
        if "local" in config.evaluation.baselines:
            prepared.progress.stage("baseline: each client trains alone")
            alone = ask(session.ask_alone, message_to, what="scores of training alone", round_number=last)
            record["baselines"] = {"local": alone}
        if "pooled" in config.evaluation.baselines and session.pooled is not None:
            prepared.progress.stage("baseline: all rows in one place")
            pooled = read_scores(prepared, exchange, session.pooled(message_to(0)), last)
            record["baselines"] = record.get("baselines", {}) | {"pooled": pooled}
    if state.round == 0 and not prepared.rules.on_test_rows:
        prepared.progress.round_ends(record)
    put_state(session, saved)


def score(prepared: Prepared) -> dict[str, float]:
    """The task's metrics on the test examples; none if the config wants none, or has none."""
    settings, data, report = prepared.config.evaluation, prepared.data, prepared.progress.evaluating
    if not prepared.rules.on_test_rows:
        return {}
    model, size, generate = prepared.base.model, settings.batch_size, settings.generate
    return data.task.evaluate(model, data.test, batch_size=size, generate=generate, progress=report)


def record_of(
    number: int, metrics: Mapping[str, float], report: RoundReport, download_bytes: int
) -> dict[str, Any]:
    """One line of metrics.jsonl, without its seconds."""
    record: dict[str, Any] = {
        "round": number,
        "train_loss": report.train_loss,
        "eval": dict(metrics),
        "upload_bytes": report.upload_bytes,
        "download_bytes": download_bytes,
        "upload_parameters": report.upload_parameters,
        "clients": sorted(report.clients),
        "rejected": report.rejected,
        "seconds": 0.0,
    }
    if report.second:
        record["upload_bytes"] += total_bytes(report.second, direction="up")
        answers = [entry for entry in report.second if entry.direction == "up"]
        record["upload_parameters"] += sum(entry.parameters for entry in answers)
    if report.scaled:
        record["scaled"] = report.scaled
    if report.deviation is not None:
        record["deviation"] = report.deviation
    return record


def _ask(session: Session, state: ServerState, held: Mapping[int, Part], sent: Sent) -> Iterable[Outcome]:
    message_for = broadcasts(state, session.local_model.exchange)

    def message_to(client: int) -> bytes:
        message = message_for(client, held[client])
        sent["bytes"] += len(message)
        sent["parameters"] += wire.count(message)
        return message

    privacy, ask_clients = session.prepared.privacy, session.ask_clients
    if session.prepared.remote is not None and privacy is not None:
        ask_clients = expecting(privacy, ask_clients, state.round + 1)
    return ask_clients(list(held), message_to)


def refresh_bases(session: Session, saved: RunState, record: dict[str, Any]) -> None:
    """Fold and start new bases after the last finished round; this traffic is added to its record."""
    prepared, data, number = session.prepared, session.prepared.data, saved.state.round
    prepared.progress.stage(f"new bases after round {number}")
    seed = prepared.config.seed
    start = replace(prepared.start, seed=derive(seed, "refresh", number), head_warmup=None)
    spilled = SpilledTensors(prepared.folder / "checkpoint" / "spill")
    calibration, clients = calibration_of(data, prepared.base, start, prepared.method, {}), len(data.parts)
    saved.state, saved.factors, traffic = refresh(
        session.local_model, saved.state, start, calibration, num_clients=clients, seed=seed, sums=spilled
    )
    shutil.rmtree(spilled.folder)
    saved.factors_round = number
    saved.traffic += traffic
    record["upload_bytes"] += total_bytes(traffic, direction="up")
    record["download_bytes"] += total_bytes(traffic, direction="down")
