"""Round 0 of a run: score the base as it is, then make bases and head, here or by asking the clients."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fedsb.config import RunConfig
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import bases_kind, draw_calibration, needs_data, start_factors
from fedsb.federation.start.settings import Start
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Ledger
from fedsb.methods import Method
from fedsb.report.progress import Progress
from fedsb.runner.arguments import start_of
from fedsb.runner.checkpoint import RunState
from fedsb.runner.clients import RemoteClients
from fedsb.runner.prepare_data import Data, batches_of, protected_batches
from fedsb.runner.prepare_model import BaseModel, exchange_of
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.remote_start import BASES, start_remotely
from fedsb.runner.spill import SpilledTensors


def begin(
    config: RunConfig,
    folder: Path,
    method: Method,
    data: Data,
    base: BaseModel,
    private: PrivateRun | None,
    progress: Progress,
    remote: RemoteClients | None,
) -> RunState:
    """Round 0: score the base as it is, then make bases and head."""
    began = time.monotonic()
    if config.evaluation.every is not None:
        progress.stage("evaluating the base model")
    record = record_of(0, score(config, data, base.model, progress), began)
    start = start_of(config, data.parts)
    if private is not None:
        start = replace(start, private=private.private_start(elsewhere=remote is not None))
    calibration = calibration_of(data, base, start, method, base.task_head)
    progress.stage(f"starting the factors ({'LoRA' if method.draw else bases_kind(start, method)})")
    spilled = SpilledTensors(folder / "checkpoint" / "spill")
    make = start_factors
    if remote is not None:
        make = partial(start_remotely, remote=remote, progress=progress, bases=folder / BASES)
    started = make(
        base.model,
        base.targets,
        base.task_head,
        method,
        start,
        calibration,
        num_clients=len(data.parts),
        sums=spilled,
    )
    shutil.rmtree(spilled.folder)
    sent = {f"{n}.{f}": getattr(part, f) for n, part in started.factors.items() for f in method.sends}
    state = ServerState(0, exchange_of(config, base).down(config.method.rank).flatten(sent | base.task_head))
    progress.round_ends(record)
    if private is not None:
        record["epsilon"] = private.epsilon()
    told = {} if private or calibration.public else started.draw
    return RunState(state, started.factors, Ledger(started.traffic), [record], told, time.monotonic() - began)


def calibration_of(
    data: Data, base: BaseModel, start: Start, method: Method, head: Mapping[str, Any]
) -> Calibration:
    """The examples that the start may look at: public ones, all of each client's if it protects them itself,
    or an equal draw."""
    batches, losses = batches_of(data, base.device), data.task.losses
    if data.public is not None:
        return Calibration({0: list(range(len(data.public)))}, data.public, batches, losses, public=True)
    if start.private is not None:
        how = protected_batches(data, base.model, base.device, start.private.max_length)
        return Calibration(dict(enumerate(data.parts)), data.train, *how)
    looks = needs_data(start, method, head)
    draw = draw_calibration(data.parts, start.samples, seed=start.seed) if looks else {}
    return Calibration(draw, data.train, batches, losses)


def score(config: RunConfig, data: Data, model: nn.Module, progress: Progress) -> dict[str, float]:
    """The task's metrics on the test examples; none if the config wants none."""
    wanted = config.evaluation
    if wanted.every is None:
        return {}
    return data.task.evaluate(
        model, data.test, batch_size=wanted.batch_size, generate=wanted.generate, progress=progress.evaluating
    )


def record_of(number: int, metrics: Mapping[str, float], began: float) -> dict[str, Any]:
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
