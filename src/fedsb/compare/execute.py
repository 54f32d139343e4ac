"""Do runs that are not done: one after the other here, or several at a time in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from fedsb.compare.arms import Job
from fedsb.compare.perform import perform
from fedsb.compare.progress import OneRun, Progress
from fedsb.runner.processes.child import threads

SILENT_SECONDS = 1800.0
"""Without a word of any run, after which that is said."""
Problems = dict[str, str]
"""Name of a run -> why it failed."""


def execute(jobs: Sequence[Job], at_once: int, progress: Progress) -> Problems:
    """Do the jobs, `at_once` at a time; what failed does not stop the others.

    A run with a started folder goes on after its last finished round.
    """
    progress.begins(len(jobs))
    return _one_by_one(jobs, progress) if at_once == 1 else _several(jobs, at_once, progress)


def _one_by_one(jobs: Sequence[Job], progress: Progress) -> Problems:
    problems: Problems = {}
    for job in jobs:
        progress.run_begins(job.name)
        problem = _run_here(job, progress)
        if problem is not None:
            problems[job.name] = problem
        progress.run_ends(job.name, problem)
        gc.collect()  # the model of this run before the next one's is loaded
    return problems


def _run_here(job: Job, progress: Progress) -> str | None:
    watcher = OneRun(lambda share, text: progress.run_at(job.name, share, text))
    return perform(job.config, job.folder, watcher, asks=job.asks)


def _several(jobs: Sequence[Job], at_once: int, progress: Progress) -> Problems:
    """Processes report through one queue, which only this thread reads."""
    waiting, problems = list(reversed(jobs)), {}
    events: Queue[tuple[Job, dict[str, Any]]] = Queue()
    with _children() as children:
        while waiting or children:
            while waiting and len(children) < at_once:
                job = waiting.pop()
                progress.run_begins(job.name)
                children[job.name] = _start(job, at_once, events)
            job, event = _next(events, children, progress)
            if "ended" not in event:
                progress.run_at(job.name, event["share"], event["text"])
                continue
            children.pop(job.name)
            if event["ended"] is not None:
                problems[job.name] = str(event["ended"])
            progress.run_ends(job.name, event["ended"])
    return problems


def _next(
    events: Queue[tuple[Job, dict[str, Any]]], running: Iterable[str], progress: Progress
) -> tuple[Job, dict[str, Any]]:
    """The next event; a line at times while there is none. What a run may take cannot be known here."""
    while True:
        try:
            return events.get(timeout=SILENT_SECONDS)
        except Empty:
            names = ", ".join(running)
            progress.stage(f"nothing new of {names} for {SILENT_SECONDS / 60:g} minutes; Ctrl-C stops")


@contextmanager
def _children() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes by name of their run; those left at the end, as after Ctrl-C, are stopped."""
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        yield children
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait()


def _start(job: Job, at_once: int, events: Queue[tuple[Job, dict[str, Any]]]) -> subprocess.Popen[str]:
    """A process for one run. Its standard input stays open: it ends itself when that closes."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "fedsb.compare.perform"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(threads(at_once))},
        start_new_session=True,  # Ctrl-C is for this process to handle
    )
    Thread(target=_listen, args=(job, child, log, events), daemon=True).start()
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(_request(job)) + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once; _listen says so
    return child


def _request(job: Job) -> dict[str, Any]:
    return {"config": job.config.model_dump(mode="json"), "folder": str(job.folder), "asks": job.asks}


def _listen(
    job: Job,
    child: subprocess.Popen[str],
    log: IO[str],
    events: Queue[tuple[Job, dict[str, Any]]],
) -> None:
    """Pass on what the process says, then how it ended."""
    last: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        last = json.loads(line)
        if "ended" not in last:
            events.put((job, last))
    status = child.wait()
    child.stdout.close()
    if child.stdin is not None:
        child.stdin.close()
    if "ended" not in last:
        last = {"ended": f"its process ended with status {status}{_last_words(log)}"}
    log.close()
    events.put((job, last))


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return f": {lines[-1]}" if lines else ""
