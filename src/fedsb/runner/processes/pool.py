"""The run's side: start workers, give each its clients in turn, yield answers in the cohort's order.

A client always goes to the same worker, which holds its base weights where a method changes them. What a
cohort gives does not depend on which worker is faster.

A worker that dies, or that answers nothing for too long, is ended: the client it trained has failed, and
another worker takes its place.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO

from fedsb.config import RunConfig
from fedsb.errors import RunFailed
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.report.progress import Progress
from fedsb.runner.clients import AskClients, MessageTo
from fedsb.runner.processes.child import Frame, read_frame, threads, write_frame

Answers = Queue[tuple[int, Frame | None]]
"""(serial number of a process, its frame); None: it ended."""
LOAD_SECONDS = 1800.0
"""For a model to be loaded."""
GRACE_SECONDS = 30.0
"""Beyond federation.client_timeout_seconds, which a client looks at between its steps."""
MOST_LOST = 5
"""Processes that may be lost, one after the other, without an answer between them."""


@dataclass
class _Worker:
    """One process.

    Attributes:
        serial: tells its frames from those of the one before it in its place.
        client: whom it trains.
        due: when it must have answered; infinity where nothing sets an end.
    """

    process: subprocess.Popen[bytes]
    log: IO[str]
    serial: int
    client: int | None = None
    ready: bool = False
    due: float = math.inf

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.log):
            with suppress(OSError, ValueError):  # what it did not read any more
                stream.close()  # type: ignore[union-attr]


@contextmanager
def pool(config: RunConfig, folder: Path, progress: Progress) -> Iterator[AskClients | None]:
    """Peers that train in `federation.processes` processes; None where that is one, this one.

    Processes start with the first cohort, when the run's checkpoint is there, and end with the block.

    Raises (while answers are asked for):
        RunFailed: a worker could not load the run, or one after the other was lost.
    """
    if config.federation.processes == 1:
        yield None
        return
    workers = _Workers(config, folder, progress)
    try:
        yield workers.ask
    finally:
        workers.end()


def seconds_of(config: RunConfig) -> float:
    """How long a client may train in a worker."""
    federation = config.federation
    if federation.client_timeout_seconds is not None:
        return federation.client_timeout_seconds + GRACE_SECONDS
    return federation.deadline_seconds or math.inf


@dataclass
class _Workers:
    """All processes, by their place.

    Attributes:
        started: processes so far.
        lost: those that were lost since the last answer.
    """

    config: RunConfig
    folder: Path
    progress: Progress
    places: list[_Worker] = field(default_factory=list)
    answers: Answers = field(default_factory=Queue)
    started: int = 0
    lost: int = 0

    def ask(self, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        """`peers.AskClients`."""
        count = self.config.federation.processes
        if not self.places:
            self.progress.stage(f"starting {count} processes")
            self.places = [self._start(place) for place in range(count)]
        waiting: dict[int, list[int]] = defaultdict(list)
        for client in reversed(cohort):
            waiting[client % count].append(client)
        for place in list(waiting):
            self._send(place, waiting[place].pop(), message_to)
        arrived: dict[int, Outcome] = {}
        for client in cohort:
            while client not in arrived:
                place, outcome = self._next()
                arrived[outcome.client] = outcome
                if waiting[place]:
                    self._send(place, waiting[place].pop(), message_to)
            self.progress.client_ends(client, getattr(arrived[client], "reason", None))
            yield arrived.pop(client)

    def end(self) -> None:
        for worker in self.places:
            worker.end()

    def _start(self, place: int) -> _Worker:
        self.started += 1
        return _start(self.config, self.folder, place, self.started, self.answers)

    def _send(self, place: int, client: int, message_to: MessageTo) -> None:
        worker, message = self.places[place], message_to(client)
        worker.client, worker.due = client, self._due(worker.ready)
        assert worker.process.stdin is not None
        Thread(target=_write, args=(worker.process.stdin, client, message), daemon=True).start()

    def _due(self, ready: bool) -> float:
        return time.monotonic() + seconds_of(self.config) + (0.0 if ready else LOAD_SECONDS)

    def _next(self) -> tuple[int, Outcome]:
        """The place and the outcome of the next client that is done with, one way or the other."""
        while True:
            frame = self._frame()
            if frame is None:
                late = min(range(len(self.places)), key=lambda place: self.places[place].due)
                outcome = self._lose(late, "did not answer in time")
            else:
                place = next((p for p, worker in enumerate(self.places) if worker.serial == frame[0]), None)
                if place is None:  # the last frames of a process that was ended
                    continue
                late, outcome = place, self._heard(place, frame[1])
            if outcome is not None:
                return late, outcome

    def _heard(self, place: int, frame: Frame | None) -> Outcome | None:
        worker = self.places[place]
        if frame is None:
            return self._lose(place, f"ended with status {worker.process.wait()}{_last_words(worker)}")
        facts, message = frame
        if "broken" in facts:
            raise RunFailed(_worker_process(str(facts["broken"])))
        if "ready" in facts:
            worker.ready, worker.due = True, math.inf if worker.client is None else self._due(True)
            return None
        client = int(facts["client"])
        worker.client, worker.due, self.lost = None, math.inf, 0
        return Failed(client, str(facts["reason"])) if "reason" in facts else Arrived(client, message)

    def _frame(self) -> tuple[int, Frame | None] | None:
        """The next frame of any process; None: one is overdue."""
        left = min(worker.due for worker in self.places) - time.monotonic()
        try:
            return self.answers.get(timeout=None if left == math.inf else max(0.0, left))
        except Empty:
            return None

    def _lose(self, place: int, why: str) -> Outcome | None:
        """Another process for this place; the client it trained, if it trained one, has failed."""
        client = self.places[place].client
        self.places[place].end()
        self.lost += 1
        if self.lost > MOST_LOST:
            raise RunFailed(_worker_process(why))
        self.places[place] = self._start(place)
        return None if client is None else Failed(client, f"its worker process {why}")


def _worker_process(why: str) -> str:
    return f"federation.processes: a worker process {why}; the last finished round is saved"


def _write(stream: IO[bytes], client: int, message: bytes) -> None:
    """In a thread of its own: a worker that hangs reads nothing, and the pipe takes only so much."""
    with suppress(OSError, ValueError):  # it died; `_listen` says so
        write_frame(stream, {"client": client}, message)


def _start(config: RunConfig, folder: Path, place: int, serial: int, answers: Answers) -> _Worker:
    """A process with the run's config; its standard input stays open: it ends itself when that closes."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fedsb.runner.processes.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": str(threads(config.federation.processes))},
        start_new_session=True,  # Ctrl-C is for this process to handle
    )
    Thread(target=_listen, args=(serial, process, answers), daemon=True).start()
    assert process.stdin is not None
    request = {"config": config.model_dump(mode="json"), "folder": str(folder), "number": place}
    with suppress(BrokenPipeError):
        write_frame(process.stdin, request)
    return _Worker(process, log, serial)


def _listen(serial: int, process: subprocess.Popen[bytes], answers: Answers) -> None:
    """Pass on what the process answers, and then that it ended."""
    assert process.stdout is not None
    with suppress(OSError, ValueError):
        while (frame := read_frame(process.stdout)) is not None:
            answers.put((serial, frame))
    process.stdout.close()
    answers.put((serial, None))


def _last_words(worker: _Worker) -> str:
    worker.log.seek(0)
    lines = [line.strip() for line in worker.log if line.strip()]
    return f" ({lines[-1]})" if lines else ""
