"""The round loop: config in, run folder out.

prepare -> start (bases, head) -> [broadcast -> cohort trains -> average -> evaluate -> checkpoint] x rounds
        -> adapter/, summary.json, report.html
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedsb import run_folder
from fedsb.adapter import Attached, attach
from fedsb.checkpoint import Saved, load_checkpoint, save_checkpoint
from fedsb.client import Trainable, client_update
from fedsb.config import RunConfig
from fedsb.initialize import Calibration, draw_calibration, needs_data, start_factors
from fedsb.layout import Layout
from fedsb.methods import Method
from fedsb.prepare import (
    Base,
    Data,
    batches_of,
    local_training,
    method_of,
    prepare_base,
    prepare_data,
    start_of,
)
from fedsb.progress import Progress, Silent
from fedsb.samples import write_samples
from fedsb.sampling import cohort
from fedsb.seeding import numpy_generator
from fedsb.server import Outcome, ServerState, aggregate, broadcast
from fedsb.simulate import simulate_cohort
from fedsb.spill import SpilledTensors
from fedsb.traffic import Entry, Ledger


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
    base: Base
    trainable: Trainable
    attached: Attached
    progress: Progress


def run(
    config: RunConfig, out: str | Path, *, resume: bool = False, progress: Progress | None = None
) -> RunResult:
    """Do one federated run, or go on with one that was stopped, and leave a whole run folder.

    Raises:
        InputError: the config, the data, the model or the folder is wrong; nothing was started.
        RunFailed: the run could not go on; its last finished round is saved in `out`.
    """
    progress = progress or Silent()
    config, folder = config.with_absolute_paths(), Path(out)
    run_folder.check_free(folder, config, resume=resume)
    method = method_of(config)
    progress.stage("reading data")
    data = prepare_data(config)
    progress.stage(f"loading {Path(config.model.path).name}")
    base = prepare_base(config, data)
    saved = load_checkpoint(folder / "checkpoint") if resume else None
    run_folder.open_folder(folder, config, data)
    clock = time.monotonic() - (saved.seconds if saved else 0.0)
    saved = saved or _start(config, folder, method, data, base, progress)
    session = _session(config, folder, method, data, base, saved, progress)
    _rounds(session, saved, clock)
    summary = run_folder.finished_summary(folder)
    if summary is None:
        write_samples(folder, config, data, base.model)
        summary = run_folder.finish(folder, config, method, data, session.attached, base.head, saved, clock)
    return RunResult(summary, base.model, folder)


def _start(
    config: RunConfig, folder: Path, method: Method, data: Data, base: Base, progress: Progress
) -> Saved:
    """Round 0: score the base as it is, then make bases and head."""
    began = time.monotonic()
    progress.stage("evaluating the base model")
    record = _record(0, _evaluate(config, data, base.model, progress), began)
    start = start_of(config, data.parts)
    looks = needs_data(start, method, base.head)
    draw = draw_calibration(data.parts, start.samples, seed=config.seed) if looks else {}
    calibration = Calibration(draw, data.train, batches_of(data, base.device), data.task.losses)
    progress.stage(f"starting the factors ({'LoRA' if method.draw else start.kind})")
    spilled = SpilledTensors(folder / "checkpoint" / "spill")
    started = start_factors(
        base.model,
        base.targets,
        base.head,
        method,
        start,
        calibration,
        num_clients=len(data.parts),
        sums=spilled,
    )
    shutil.rmtree(spilled.folder)
    trained = {f"{n}.{f}": getattr(part, f) for n, part in started.factors.items() for f in method.trains}
    everything = trained | base.head
    state = ServerState(0, Layout.of(everything).flatten(everything))
    progress.round_ends(record)
    return Saved(
        state, started.factors, Ledger(started.traffic), [record], started.draw, time.monotonic() - began
    )


def _session(
    config: RunConfig, folder: Path, method: Method, data: Data, base: Base, saved: Saved, progress: Progress
) -> _Session:
    scale = method.scale(config.method.rank, config.method.alpha)
    attached = attach(base.model, saved.factors, trains=method.trains, scale=scale)
    for parameter in base.head.values():
        parameter.requires_grad_(True)
    parameters = _trained_parameters(attached, method) | base.head
    trainable = Trainable(
        base.model, parameters, Layout.of(parameters), data.task.collate, data.task.losses, base.device
    )
    return _Session(config, folder, method, data, base, trainable, attached, progress)


def _trained_parameters(attached: Attached, method: Method) -> dict[str, nn.Parameter]:
    return {f"{n}.{f}": layer.factors()[f] for n, layer in attached.layers.items() for f in method.trains}


def _rounds(session: _Session, saved: Saved, clock: float) -> None:
    """Every round that is left, with a checkpoint after each; the model ends with the last state in it."""
    total = session.config.federation.rounds
    save_checkpoint(session.folder / "checkpoint", saved)
    run_folder.write_progress(session.folder, saved)
    while saved.state.round < total:
        began, number = time.monotonic(), saved.state.round + 1
        record = _round(session, saved, number)
        record["seconds"] = round(time.monotonic() - began, 3)
        saved.metrics.append(record)
        saved.seconds = time.monotonic() - clock
        save_checkpoint(session.folder / "checkpoint", saved)
        run_folder.write_progress(session.folder, saved)
        session.progress.round_ends(record)
    session.trainable.layout.copy_into(session.trainable.parameters, saved.state.vector)


def _round(session: _Session, saved: Saved, number: int) -> dict[str, Any]:
    config, method, trainable = session.config, session.method, session.trainable
    federation = config.federation
    chosen = cohort(
        federation.clients, federation.clients_per_round, numpy_generator(config.seed, "cohort", number)
    )
    message = broadcast(saved.state, method, trainable.layout)
    session.progress.round_begins(number, federation.rounds, chosen)
    outcomes = _cohort_outcomes(session, message, chosen)
    saved.state, report = aggregate(
        saved.state, outcomes, method, trainable.layout, weighting=federation.weighting
    )
    size, everyone = trainable.layout.size, len(chosen)
    saved.ledger.add(Entry(number, "broadcast", "down", everyone, everyone * len(message), everyone * size))
    saved.ledger.add(Entry(number, "updates", "up", everyone, report.upload_bytes, report.upload_parameters))
    trainable.layout.copy_into(trainable.parameters, saved.state.vector)
    due = number % config.evaluation.every == 0 or number == federation.rounds
    metrics = _evaluate(config, session.data, session.base.model, session.progress) if due else {}
    return _record(number, metrics, 0.0) | {
        "train_loss": report.train_loss,
        "upload_bytes": report.upload_bytes,
        "download_bytes": everyone * len(message),
        "upload_parameters": report.upload_parameters,
        "clients": report.clients,
        "rejected": report.rejected,
    }


def _cohort_outcomes(session: _Session, message: bytes, chosen: list[int]) -> Iterable[Outcome]:
    data, progress, training = session.data, session.progress, local_training(session.config)

    def update(client: int) -> bytes:
        examples = [data.train[i] for i in data.parts[client]]
        progress.client_begins(client, round(training.epochs * len(examples)))
        return client_update(
            message,
            session.trainable,
            examples,
            training,
            client=client,
            seed=session.config.seed,
            on_step=progress.step,
        )

    for outcome in simulate_cohort(chosen, update):
        progress.client_ends(outcome.client, getattr(outcome, "reason", None))
        yield outcome


def _evaluate(config: RunConfig, data: Data, model: nn.Module, progress: Progress) -> dict[str, float]:
    wanted = config.evaluation
    return data.task.evaluate(
        model, data.test, batch_size=wanted.batch_size, generate=wanted.generate, progress=progress.evaluating
    )


def _record(number: int, metrics: Mapping[str, float], began: float) -> dict[str, Any]:
    """One line of metrics.jsonl, as for a round in which nothing was sent."""
    return {
        "round": number,
        "train_loss": None,
        "eval": dict(metrics),
        "upload_bytes": 0,
        "download_bytes": 0,
        "upload_parameters": 0,
        "clients": [],
        "rejected": [],
        "seconds": round(time.monotonic() - began, 3),
    }
