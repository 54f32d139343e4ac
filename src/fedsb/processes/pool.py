"""The run's side: start workers, give each its clients in turn, yield answers in the cohort's order.

A client always goes to the same worker, which holds its base weights where a method changes them. What a
cohort gives does not depend on which worker is faster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO

from fedsb.config import RunConfig
from fedsb.cores import threads
from fedsb.errors import RunFailed
from fedsb.peers import MessageTo, Peers
from fedsb.processes.frames import Frame, read_frame, write_frame
from fedsb.progress import Progress
from fedsb.server import Arrived, Failed, Outcome

Answers = Queue[tuple[int, Frame | None]]


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    log: IO[str]


@contextmanager
def pool(config: RunConfig, folder: Path, progress: Progress) -> Iterator[Peers | None]:
    """Peers that train in `federation.processes` processes; None where that is one, this one.

    Processes start with the first cohort, when the run's checkpoint is there, and end with the block.

    Raises (while answers are asked for):
        RunFailed: a worker could not load the run, or died.
    """
    count = config.federation.processes
    if count == 1:
        yield None
        return
    workers: list[_Worker] = []
    answers: Answers = Queue()

    def peers(cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        if not workers:
            progress.stage(f"starting {count} processes")
            workers.extend(_start(config, folder, number, answers) for number in range(count))
        yield from _ask(workers, answers, cohort, message_to, progress)

    try:
        yield peers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            worker.log.close()


def _ask(
    workers: Sequence[_Worker],
    answers: Answers,
    cohort: Sequence[int],
    message_to: MessageTo,
    progress: Progress,
) -> Iterator[Outcome]:
    waiting: dict[int, list[int]] = defaultdict(list)
    for client in reversed(cohort):
        waiting[client % len(workers)].append(client)
    for number in list(waiting):
        _send(workers[number], waiting[number].pop(), message_to)
    arrived: dict[int, Outcome] = {}
    for client in cohort:
        while client not in arrived:
            number, frame = answers.get()
            outcome = _outcome(workers[number], frame)
            arrived[outcome.client] = outcome
            if waiting[number]:
                _send(workers[number], waiting[number].pop(), message_to)
        progress.client_ends(client, getattr(arrived[client], "reason", None))
        yield arrived.pop(client)


def _send(worker: _Worker, client: int, message_to: MessageTo) -> None:
    assert worker.process.stdin is not None
    message = message_to(client)
    with suppress(BrokenPipeError):  # it died; `_listen` says so
        write_frame(worker.process.stdin, {"client": client}, message)


def _outcome(worker: _Worker, frame: Frame | None) -> Outcome:
    if frame is None or "broken" in frame[0]:
        why = (
            frame[0]["broken"] if frame else f"ended with status {worker.process.wait()}{_last_words(worker)}"
        )
        raise RunFailed(f"federation.processes: a worker process {why}; the last finished round is saved")
    facts, message = frame
    client = int(facts["client"])
    return Failed(client, str(facts["reason"])) if "reason" in facts else Arrived(client, message)


def _start(config: RunConfig, folder: Path, number: int, answers: Answers) -> _Worker:
    """A process with the run's config; its standard input stays open: it ends itself when that closes."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fedsb.processes.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": str(threads(config.federation.processes))},
        start_new_session=True,  # Ctrl-C is for this process to handle
    )
    Thread(target=_listen, args=(number, process, answers), daemon=True).start()
    assert process.stdin is not None
    request = {"config": config.model_dump(mode="json"), "folder": str(folder), "number": number}
    with suppress(BrokenPipeError):
        write_frame(process.stdin, request)
    return _Worker(process, log)


def _listen(number: int, process: subprocess.Popen[bytes], answers: Answers) -> None:
    """Pass on what the process answers, and then that it ended."""
    assert process.stdout is not None
    while (frame := read_frame(process.stdout)) is not None:
        answers.put((number, frame))
    answers.put((number, None))


def _last_words(worker: _Worker) -> str:
    worker.log.seek(0)
    lines = [line.strip() for line in worker.log if line.strip()]
    return f" ({lines[-1]})" if lines else ""
