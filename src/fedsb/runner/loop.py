"""A run: config in, run folder out.

prepare -> start (bases, head) -> [broadcast -> cohort trains -> average -> evaluate -> checkpoint] x rounds
        -> adapter/, summary.json, report.html
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from fedsb.common.stage import stage
from fedsb.config.run_config import RunConfig, flat_settings
from fedsb.errors import RunFailed
from fedsb.federation.cohort import cohort
from fedsb.report.progress import Progress, Silent, Watchers
from fedsb.report.tracking import check_tracking, trackers
from fedsb.report.write import LivePage
from fedsb.runner import folder as run_folder
from fedsb.runner.baselines import score_alone, score_pooled
from fedsb.runner.checkpoint import RunState, load_checkpoint, save_checkpoint
from fedsb.runner.client_privacy import secret_cohort
from fedsb.runner.clients import (
    ADAPTED,
    AskClients,
    LocalClient,
    RemoteClients,
    clients_here,
    local_clients,
)
from fedsb.runner.finished_model import FinishedModel
from fedsb.runner.gate import finds_groups
from fedsb.runner.given import given
from fedsb.runner.hooks import Hooks, Metric, OnRound, OnStep
from fedsb.runner.prepare_model import local_model_of
from fedsb.runner.prepared import Prepared, prepare
from fedsb.runner.processes import check_engine, workers
from fedsb.runner.remote_start import BASES, share_bases
from fedsb.runner.result import RunResult
from fedsb.runner.round_zero import begin
from fedsb.runner.rounds import (
    Session,
    make_gate,
    play_round,
    put_state,
    refresh_bases,
    refresh_due,
    score,
    score_sites,
)
from fedsb.runner.stacks import stacks_here
from fedsb.runner.threads import as_before


def run(
    config: RunConfig | Mapping[str, Any],
    out: str | Path,
    *,
    train: Any = None,
    test: Any = None,
    model: Any = None,
    tokenizer: Any = None,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    metrics: Mapping[str, Metric] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    remote: RemoteClients | None = None,
) -> RunResult:
    """Do one federated run, or resume one that was stopped or gets more rounds, and leave a whole run folder.

    Args:
        config: checked, or a nested mapping as in YAML. What is given as an object it may leave out.
        train: the training rows: a list of dicts, a `datasets.Dataset`, a pandas frame; or a dict of such by
            the names of their sources; or paths. test: likewise, or a share. They are kept in `out`/given.
        model: a transformers model, with its tokenizer or image processor as `tokenizer`; kept there too.
        on_round: called after each round with its line of metrics.jsonl, also for round 0. What it raises
            ends the run; the round is saved, and `resume` continues.
        on_step: called after each step of a client in this process with a `Step` (round, client, examples).
        metrics: name -> function(what `predict` says of the test rows, these rows) that gives a number. They
            cost one more pass over the test rows wherever these are scored.
        remote: clients on other machines, in place of simulated ones.

    Raises:
        InputError: the config, the data, the model or the folder is wrong; nothing was started.
        RunFailed: the run could not continue, its last finished round is saved in `out`; or another process
            works on this folder.
    """
    hooks, folder = Hooks(on_round, on_step, metrics or {}), Path(out)
    hooks.check()
    named, objects = given(config, folder, train=train, test=test, model=model, tokenizer=tokenizer)
    config = named.with_absolute_paths()
    check_tracking(config.tracking)
    if remote is None:
        check_engine(config)
    with run_folder.held(folder), as_before():
        run_folder.check_free(folder, config, resume=resume, deployed=remote is not None)
        config = run_folder.as_begun(folder, config) if resume else config
        objects.write()
        saved = load_checkpoint(folder / "checkpoint") if resume else None
        prepared = prepare(config, folder, hooks.watching(progress or Silent()), remote, saved)
        return _run(hooks.measuring(prepared), saved)


def _run(prepared: Prepared, saved: RunState | None) -> RunResult:
    config, folder, progress = prepared.config, prepared.folder, prepared.progress
    if saved is not None and config.privacy is None and saved.state.round < prepared.rules.rounds:
        run_folder.open_again(folder)
    run_folder.open_folder(folder, config, prepared.data)
    clock = time.monotonic() - (saved.seconds if saved else 0.0)
    saved = saved or begin(prepared)
    saved.started_on = saved.started_on or dict(prepared.inputs)
    if prepared.remote is not None:
        share_bases(folder / BASES, prepared.remote, progress)
    elsewhere = nullcontext() if prepared.remote else workers(config, folder, progress)
    with elsewhere as processes, _watchers(prepared) as watchers:
        session = session_of(prepared, saved, processes)
        _rounds(session, saved, clock, watchers)
        summary = run_folder.finished_summary(folder)
        if summary is None:
            summary = run_folder.finish(prepared, session.local_model.attached, saved, clock)
    data = prepared.data
    return RunResult(summary, FinishedModel(config, data.tokenizer, data.task, prepared.base.model), folder)


def _watchers(prepared: Prepared) -> Watchers:
    """The live page, and the trackers that the config names."""
    config, folder = prepared.config, prepared.folder
    named = dict(trackers(config.tracking, folder, flat_settings(config)))
    page = LivePage(folder, config.federation.rounds)
    return Watchers({"the live report": page, **named}, prepared.progress.stage)


def session_of(prepared: Prepared, saved: RunState, processes: AskClients | None) -> Session:
    """The model with the adapter in it; clients are elsewhere, in other processes, or here."""
    config, data, remote = prepared.config, prepared.data, prepared.remote
    local_model = local_model_of(config, data, prepared.base, saved.factors)
    clients = local_clients(config, data, local_model, prepared.privacy, saved.kept)
    rounds = prepared.rules.rounds
    if remote is not None:
        train, statistics, score_, alone = (partial(remote.ask, kind) for kind in ADAPTED)
        return Session(prepared, local_model, train, statistics, score_, alone, pooled=None)
    here = partial(clients_here, clients, prepared.progress)
    return Session(
        prepared,
        local_model,
        processes or stacks_here(config, data, clients, prepared.folder, prepared.progress),
        here(LocalClient.statistics),
        here(LocalClient.score, silently=True),
        here(lambda client, *question: score_alone(client, rounds, *question)),
        partial(score_pooled, data, clients, rounds),
    )


def _rounds(session: Session, saved: RunState, clock: float, watchers: Watchers) -> None:
    """Every round that is left, with a checkpoint after each; the model ends with the last state in it."""
    prepared = session.prepared
    _save(prepared, saved)
    put_state(session, saved)
    # a last round has no refresh, and this one may be the last no more
    if refresh_due(saved, prepared.rules, saved.metrics[-1]):
        refresh_bases(session, saved, saved.metrics[-1])
        _save(prepared, saved)
    make_gate(session, saved)
    put_state(session, saved)
    if prepared.config.scores_at_clients and "sites" not in saved.metrics[0] and saved.state.round == 0:
        score_sites(session, saved, saved.metrics[0])
        _save(prepared, saved)
    while saved.state.round < prepared.rules.rounds:
        watchers.follow(saved.metrics)
        began, number = time.monotonic(), saved.state.round + 1
        chosen = _cohort(prepared, number)
        if prepared.privacy is not None and not prepared.privacy.affords(chosen, number):
            _stop(prepared, saved)
            break
        record = play_round(session, saved, number, chosen)
        record["seconds"] = round(time.monotonic() - began, 3)
        saved.metrics.append(record)
        saved.seconds = time.monotonic() - clock
        _save(prepared, saved)
        prepared.progress.round_ends(record)
    watchers.follow(saved.metrics)


def _save(prepared: Prepared, saved: RunState) -> None:
    cure = "make room there; --resume continues from the last round that was kept"
    with stage(f"--out {prepared.folder}", "keeping the state", cure, becomes=RunFailed):
        save_checkpoint(prepared.folder / "checkpoint", saved)
        run_folder.write_progress(prepared.folder, saved)


def _cohort(prepared: Prepared, number: int) -> list[int]:
    """Who takes part in this round: as privacy draws it from a secret, or from the run's seed."""
    secret = secret_cohort(prepared.privacy, number) if prepared.privacy else None
    if secret is not None:
        return secret
    federation = prepared.config.federation
    if finds_groups(prepared.config, number):
        return list(range(federation.clients))
    return cohort(federation.clients, federation.clients_per_round, prepared.config.seed, number)


def _stop(prepared: Prepared, saved: RunState) -> None:
    """End before the last round, the budget being used up; the last state is scored if it was not."""
    done, total = saved.state.round, prepared.rules.rounds
    prepared.progress.stage(f"the privacy budget is used up: stopping after round {done} of {total}")
    last = saved.metrics[-1]
    if not last["eval"]:
        last["eval"] = score(prepared)
