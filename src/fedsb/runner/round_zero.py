"""Round 0 of a run: score the base as it is, then make bases and head, here or by asking the clients."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from fedsb.adapter import Factors
from fedsb.federation.exchange import USAGE
from fedsb.federation.server import RoundReport
from fedsb.federation.start.initialize import bases_kind, start_factors
from fedsb.federation.state import ServerState
from fedsb.runner.checkpoint import RunState
from fedsb.runner.earlier_run import begin_from
from fedsb.runner.example_privacy import private_start
from fedsb.runner.external_experts import folders_of, imported_experts
from fedsb.runner.prepare_experts import expert_state, start_experts
from fedsb.runner.prepare_model import exchange_of, own_ranks
from fedsb.runner.prepared import Prepared, calibration_of
from fedsb.runner.remote_start import BASES, start_remotely
from fedsb.runner.rounds import record_of, score
from fedsb.runner.spill import SpilledTensors


def begin(prepared: Prepared) -> RunState:
    """The run before its first round."""
    began = time.monotonic()
    config, method, data, base = prepared.config, prepared.method, prepared.data, prepared.base
    privacy, remote, progress = prepared.privacy, prepared.remote, prepared.progress
    if config.scores_test_rows:
        progress.stage("evaluating the base model")
    record = record_of(0, score(prepared), RoundReport(), 0)
    record["seconds"] = round(time.monotonic() - began, 3)
    told_later = config.scores_at_clients and not config.scores_test_rows
    if prepared.earlier is not None:
        if not told_later:
            progress.round_ends(record)
        return begin_from(prepared.earlier, prepared.config, record, time.monotonic() - began)
    start = prepared.start
    if privacy is not None:
        start = replace(start, private=private_start(privacy, elsewhere=remote is not None))
    if folders := folders_of(config):
        start = replace(start, kind="orthonormal")  # the experts bring bases with them
    calibration = calibration_of(data, base, start, method, base.task_head)
    progress.stage(f"starting the factors ({'LoRA' if method.draw else bases_kind(start, method)})")
    spilled = SpilledTensors(prepared.folder / "checkpoint" / "spill")
    make = start_factors
    if remote is not None:
        make = partial(start_remotely, remote=remote, progress=progress, bases=prepared.folder / BASES)
    parts, clients = (base.model, base.targets, base.task_head), len(data.parts)
    started = make(*parts, method, start, calibration, num_clients=clients, sums=spilled)
    shutil.rmtree(spilled.folder)
    if folders:
        imported = imported_experts(config)
        progress.stage(imported.in_words(config.method.rank))
        started, record["lost"] = replace(started, factors=imported.factors), imported.lost
    _say_ranks(prepared, started.factors)
    state = _state(prepared, started.factors)
    if not told_later:
        progress.round_ends(record)
    if privacy is not None:
        record["epsilon"] = privacy.epsilon()
    told = {} if privacy or calibration.public else started.draw
    return RunState(state, started.factors, started.traffic, [record], told, time.monotonic() - began)


def _say_ranks(prepared: Prepared, factors: Mapping[str, Factors]) -> None:
    if ranks := own_ranks(prepared.config, factors):
        least, most = min(ranks.values()), max(ranks.values())
        prepared.progress.stage(f"ranks of layers, of their spectra: {least} to {most}")


def _state(prepared: Prepared, started: Mapping[str, Factors]) -> ServerState:
    """The server's before the first round: what it shares, and of a mixture who has which experts."""
    config, data, head = prepared.config, prepared.data, prepared.base.task_head
    exchange = exchange_of(config, prepared.base, data.experts, started)
    factors = start_experts(config, data.experts, started)
    sent = {f"{n}.{f}": getattr(part, f) for n, part in factors.items() for f in exchange.method.sends}
    experts = expert_state(data.experts, data.counts)
    if experts is not None and exchange.experts is not None and exchange.experts.balances:
        sent[USAGE] = experts.usage
    return ServerState(0, exchange.down(exchange.rank).flatten(sent | head), experts=experts)
