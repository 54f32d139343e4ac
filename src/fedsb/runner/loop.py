"""The round loop: config in, run folder out.

prepare -> start (bases, head) -> [broadcast -> cohort trains -> average -> evaluate -> checkpoint] x rounds
        -> adapter/, summary.json, report.html
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fedsb.adapter.attached import Attached
from fedsb.common.seeding import derive, numpy_generator
from fedsb.config.method import method_of
from fedsb.config.run_config import RunConfig, flat_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation import wire
from fedsb.federation.cohort import cohort
from fedsb.federation.exchange import Part
from fedsb.federation.local_model import LocalModel, load_state
from fedsb.federation.server import Outcome, RoundReport, aggregate, broadcasts
from fedsb.federation.start.refresh import refresh
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Traffic
from fedsb.methods import Method
from fedsb.models.digest import base_digest, layer_digest
from fedsb.privacy.client_level import ClientRelease
from fedsb.report.progress import Progress, Silent, Watchers
from fedsb.report.tracking import check_tracking, trackers
from fedsb.report.write import LivePage
from fedsb.runner import folder as run_folder
from fedsb.runner.arguments import (
    needs_weights_at_server,
    norm_bound,
    part_of,
    robust_average,
    start_of,
)
from fedsb.runner.checkpoint import RunState, load_checkpoint, save_checkpoint
from fedsb.runner.clients import AskClients, RemoteClients, clients_here, expecting, local_client
from fedsb.runner.folder import write_samples
from fedsb.runner.precision import slow_bfloat16
from fedsb.runner.prepare_data import Data, prepare_data, prepare_server_data
from fedsb.runner.prepare_model import BaseModel, local_model_of, prepare_base, prepare_shapes
from fedsb.runner.private_run import PrivateRun, prepare_privacy
from fedsb.runner.processes import pool
from fedsb.runner.remote_start import share_bases
from fedsb.runner.round_zero import BASES, begin, calibration_of, record_of, score
from fedsb.runner.spill import SpilledTensors
from fedsb.runner.started_on import check_same, started_on


@dataclass(frozen=True)
class RunResult:
    """What a run gives back: its summary, the model with the final adapter in it, and its folder."""

    summary: dict[str, Any]
    model: nn.Module
    folder: Path


@dataclass(frozen=True)
class _Session:
    """Everything fixed during the rounds of one run."""

    config: RunConfig
    folder: Path
    method: Method
    data: Data
    base: BaseModel
    local_model: LocalModel
    attached: Attached
    progress: Progress
    private: PrivateRun | None
    ask_clients: AskClients
    remote: bool


def run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    remote: RemoteClients | None = None,
) -> RunResult:
    """Do one federated run, or go on with one that was stopped, and leave a whole run folder.

    Args:
        remote: clients on other machines, in place of simulated ones.

    Raises:
        InputError: the config, the data, the model or the folder is wrong; nothing was started.
        RunFailed: the run could not go on, its last finished round is saved in `out`; or another process
            works on this folder.
    """
    config, folder = config.with_absolute_paths(), Path(out)
    check_tracking(config.tracking)
    with run_folder.held(folder):
        return _run_alone(config, folder, resume, progress or Silent(), remote)


def _run_alone(
    config: RunConfig, folder: Path, resume: bool, progress: Progress, remote: RemoteClients | None
) -> RunResult:
    run_folder.check_free(folder, config, resume=resume)
    method = method_of(config)
    progress.stage("reading data")
    data = prepare_data(config) if remote is None else prepare_server_data(config, remote.parts)
    if remote is None and (slow := slow_bfloat16(config)):
        progress.stage(slow)
    progress.stage(f"loading {Path(config.model.path).name}")
    if remote is None or needs_weights_at_server(config):
        base = prepare_base(config, data)
        weights: str | None = base_digest(base.model, base.task_head)
        _check_same_base(weights, remote)
        made_for = layer_digest(base.targets)
    else:
        base, made_for, weights = prepare_shapes(config, data), None, remote.base_digest
    saved = load_checkpoint(folder / "checkpoint") if resume else None
    inputs = started_on(config, data, weights, run_folder.versions())
    if saved is not None and (other := check_same(saved.started_on, inputs, config)):
        progress.stage(other)
    private = _prepare_privacy(config, folder, data, saved, progress)
    run_folder.open_folder(folder, config, data)
    clock = time.monotonic() - (saved.seconds if saved else 0.0)
    saved = saved or begin(config, folder, method, data, base, private, progress, remote)
    saved.started_on = saved.started_on or inputs
    if remote is not None:
        share_bases(folder / BASES, remote, progress)
    with pool(config, folder, progress) as spread, _watchers(config, folder, progress) as watchers:
        session = _session(config, folder, method, data, base, saved, private, progress, remote, spread)
        _rounds(session, saved, clock, watchers)
        summary = run_folder.finished_summary(folder)
        if summary is None:
            write_samples(folder, config, data, base.model)
            privacy = private.summary(saved.metrics) if private else None
            summary = run_folder.finish(
                folder,
                config,
                method,
                data,
                session.attached,
                base.task_head,
                saved,
                clock,
                made_for,
                privacy,
            )
    return RunResult(summary, base.model, folder)


def _watchers(config: RunConfig, folder: Path, progress: Progress) -> Watchers:
    """The live page, and the trackers that the config names."""
    named = dict(trackers(config.tracking, folder, flat_settings(config)))
    return Watchers({"the live report": LivePage(folder, config.federation.rounds), **named}, progress.stage)


def _check_same_base(own: str | None, remote: RemoteClients | None) -> None:
    if remote is not None and remote.base_digest not in (None, own):
        raise InputError(
            f"model.path: the server's base model has the digest {own}, the nodes' {remote.base_digest}: "
            "not the same weights. Give the server or the nodes the other's model folder"
        )


def _prepare_privacy(
    config: RunConfig, folder: Path, data: Data, saved: RunState | None, progress: Progress
) -> PrivateRun | None:
    """Noise calibrated, and the ledger checked against what the run had reported."""
    if config.privacy is None:
        return None
    progress.stage("calibrating noise")
    private = prepare_privacy(config, {c: len(part) for c, part in enumerate(data.parts)}, folder)
    if private is not None:
        private.check_ledger(saved.metrics[-1].get("epsilon") if saved else None)
    return private


def _session(
    config: RunConfig,
    folder: Path,
    method: Method,
    data: Data,
    base: BaseModel,
    saved: RunState,
    private: PrivateRun | None,
    progress: Progress,
    remote: RemoteClients | None,
    spread: AskClients | None,
) -> _Session:
    local_model = local_model_of(config, data, base, saved.factors)
    client_of = partial(local_client, config, data, local_model, private)
    here = spread or clients_here(client_of, progress)
    ask_clients = partial(remote.ask, "train") if remote else here
    return _Session(
        config=config,
        folder=folder,
        method=method,
        data=data,
        base=base,
        local_model=local_model,
        attached=local_model.attached,
        progress=progress,
        private=private,
        ask_clients=ask_clients,
        remote=remote is not None,
    )


def _rounds(session: _Session, saved: RunState, clock: float, watchers: Watchers) -> None:
    """Every round that is left, with a checkpoint after each; the model ends with the last state in it."""
    total = session.config.federation.rounds
    save_checkpoint(session.folder / "checkpoint", saved)
    run_folder.write_progress(session.folder, saved)
    _load_state(session, saved)
    while saved.state.round < total:
        watchers.follow(saved.metrics)
        began, number = time.monotonic(), saved.state.round + 1
        chosen = _cohort(session, number)
        if session.private is not None and not session.private.can_go_on(chosen):
            _stop(session, saved)
            break
        record = _round(session, saved, number, chosen)
        record["seconds"] = round(time.monotonic() - began, 3)
        saved.metrics.append(record)
        saved.seconds = time.monotonic() - clock
        save_checkpoint(session.folder / "checkpoint", saved)
        run_folder.write_progress(session.folder, saved)
        session.progress.round_ends(record)
    watchers.follow(saved.metrics)


def _cohort(session: _Session, number: int) -> list[int]:
    federation, private = session.config.federation, session.private
    if private is not None and private.clients is not None:
        return private.cohort(number)
    rng = numpy_generator(session.config.seed, "cohort", number)
    return cohort(federation.clients, federation.clients_per_round, rng)


def _stop(session: _Session, saved: RunState) -> None:
    """End before the last round, the budget being used up; the last state is scored if it was not."""
    done, total = saved.state.round, session.config.federation.rounds
    session.progress.stage(f"the privacy budget is used up: stopping after round {done} of {total}")
    last = saved.metrics[-1]
    if not last["eval"]:
        last["eval"] = score(session.config, session.data, session.base.model, session.progress)


def _load_state(session: _Session, saved: RunState) -> None:
    state, seed = saved.state, session.config.seed
    load_state(session.local_model, state.vector, state.base.total, round_number=state.round, seed=seed)


def _round(session: _Session, saved: RunState, number: int, chosen: list[int]) -> dict[str, Any]:
    config, exchange, federation = session.config, session.local_model.exchange, session.config.federation
    parts = {client: part_of(config, client, number) for client in chosen}
    session.progress.round_begins(number, federation.rounds, chosen)
    sent = _Sent()
    outcomes = _cohort_outcomes(session, saved.state, parts, sent)
    release = _server_release(session, saved, number)
    saved.state, report = aggregate(
        saved.state,
        outcomes,
        exchange,
        weighting=federation.weighting,
        part_of=parts.__getitem__,
        aggregation=release.wrap(exchange.method.aggregation) if release else robust_average(config),
        fewest=0 if release else 1,
        bound=norm_bound(config),
        registered={client: len(session.data.parts[client]) for client in chosen},
    )
    if release is None:
        _check_enough(config, report, number)
    everyone = len(chosen)
    saved.ledger.add(Traffic(number, "broadcast", "down", everyone, sent.bytes, sent.parameters))
    saved.ledger.add(
        Traffic(number, "updates", "up", everyone, report.upload_bytes, report.upload_parameters)
    )
    _load_state(session, saved)
    every = config.evaluation.every
    due = every is not None and (number % every == 0 or number == federation.rounds)
    metrics = score(config, session.data, session.base.model, session.progress) if due else {}
    record = record_of(number, metrics, 0.0) | {
        "train_loss": report.train_loss,
        "upload_bytes": report.upload_bytes,
        "download_bytes": sent.bytes,
        "upload_parameters": report.upload_parameters,
        "clients": sorted(report.clients),
        "rejected": report.rejected,
    }
    if report.scaled:
        record["scaled"] = report.scaled
    if report.deviation is not None:
        record["deviation"] = report.deviation
    if session.private is not None:
        record["epsilon"] = session.private.epsilon()
    if release is not None:
        record["clip_norm"] = release.next_clip_norm
    if _refresh_is_due(config, number):
        record |= _refresh(session, saved, record)
    return record


def _check_enough(config: RunConfig, report: RoundReport, number: int) -> None:
    """Refuse a mean over too few; the last finished round is still the saved one.

    Raises:
        RunFailed: with the reasons of those that are missing.
    """
    wanted, found = config.federation.min_updates, len(report.clients)
    if found < wanted:
        reasons = "; ".join(f"client {r['client']}: {r['reason']}" for r in report.rejected[:5])
        raise RunFailed(
            f"round {number}: {found} usable updates, federation.min_updates is {wanted} ({reasons}); mend "
            "the clients and resume"
        )


def _server_release(session: _Session, saved: RunState, number: int) -> ClientRelease | None:
    """What clips and noises the mean of this round, where the unit is a client."""
    if session.private is None:
        return None
    clip_norm = saved.metrics[-1].get("clip_norm", session.private.wanted.clip_norm)
    return session.private.server_release(number, clip_norm)


def _refresh_is_due(config: RunConfig, number: int) -> bool:
    every = config.method.refresh_every
    return every is not None and number % every == 0 and number < config.federation.rounds


def _refresh(session: _Session, saved: RunState, record: Mapping[str, Any]) -> dict[str, int]:
    """Fold and start new bases; the round's bytes with this traffic in them."""
    config, data, number = session.config, session.data, saved.state.round
    session.progress.stage(f"new bases after round {number}")
    start = replace(
        start_of(config, data.parts), seed=derive(config.seed, "refresh", number), head_warmup=None
    )
    spilled = SpilledTensors(session.folder / "checkpoint" / "spill")
    saved.state, saved.factors, traffic = refresh(
        session.local_model,
        saved.state,
        start,
        calibration_of(data, session.base, start, session.method, {}),
        num_clients=len(data.parts),
        seed=config.seed,
        sums=spilled,
    )
    shutil.rmtree(spilled.folder)
    saved.factors_round = number
    for entry in traffic:
        saved.ledger.add(entry)
    up, down = (sum(e.bytes for e in traffic if e.direction == way) for way in ("up", "down"))
    return {
        "upload_bytes": record["upload_bytes"] + up,
        "download_bytes": record["download_bytes"] + down,
    }


@dataclass
class _Sent:
    """What a round's broadcasts came to."""

    bytes: int = 0
    parameters: int = 0


def _cohort_outcomes(
    session: _Session, state: ServerState, parts: Mapping[int, Part], sent: _Sent
) -> Iterable[Outcome]:
    message_for = broadcasts(state, session.local_model.exchange)

    def message_to(client: int) -> bytes:
        message = message_for(client, parts[client])
        sent.bytes += len(message)
        sent.parameters += wire.count(message)
        return message

    private, ask_clients = session.private, session.ask_clients
    if session.remote and private is not None and private.clients is None:
        ask_clients = expecting(private, ask_clients, state.round + 1)
    return ask_clients(list(parts), message_to)
