"""The run's side: start workers, give each its clients in turn, yield answers in the cohort's order.

A client always goes to the same worker, which holds its base weights where a method changes them. What a
cohort gives does not depend on which worker is faster.

A worker that dies, or that answers nothing for too long, is ended: the client it trained has failed, and
another worker takes its place.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Thread

from fedsb.common.child import Answers, Child, Frame, next_answer, start
from fedsb.config import RunConfig
from fedsb.errors import RunFailed
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.report.progress import Progress
from fedsb.runner.clients import AskClients, MessageTo

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
        client: whom it trains.
        due: when it must have answered; infinity where nothing sets an end.
    """

    child: Child
    client: int | None = None
    ready: bool = False
    due: float = math.inf


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
        lost: those that were lost since the last answer.
    """

    config: RunConfig
    folder: Path
    progress: Progress
    places: list[_Worker] = field(default_factory=list)
    answers: Answers = field(default_factory=Queue)
    lost: int = 0

    def ask(self, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        """`clients.AskClients`."""
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
            worker.child.end()

    def _start(self, place: int) -> _Worker:
        """A process with the run's config."""
        number, at_once = self.config.training.threads, self.config.federation.processes
        program, threads = ["-m", "fedsb.runner.processes.worker"], None if number == "auto" else number
        child = start(program, self.answers, at_once, threads)
        config = self.config.model_dump(mode="json")
        child.send({"config": config, "folder": str(self.folder), "number": place})
        return _Worker(child)

    def _send(self, place: int, client: int, message_to: MessageTo) -> None:
        """In a thread of its own: a worker that hangs reads nothing, and the pipe takes only so much."""
        worker, message = self.places[place], message_to(client)
        worker.client, worker.due = client, self._due(worker.ready)
        Thread(target=worker.child.send, args=({"client": client}, message), daemon=True).start()

    def _due(self, ready: bool) -> float:
        return time.monotonic() + seconds_of(self.config) + (0.0 if ready else LOAD_SECONDS)

    def _next(self) -> tuple[int, Outcome]:
        """The place and the outcome of the next client that is done with, one way or the other."""
        while True:
            due = min(worker.due for worker in self.places)
            left = None if due == math.inf else max(0.0, due - time.monotonic())
            answer = next_answer(self.answers, left)
            if answer is None:
                place = [worker.due for worker in self.places].index(due)
                outcome = self._lose(place, "did not answer in time")
            else:
                children = [worker.child for worker in self.places]
                if answer[0] not in children:  # the last frames of a process that was ended
                    continue
                place = children.index(answer[0])
                outcome = self._heard(place, answer[1])
            if outcome is not None:
                return place, outcome

    def _heard(self, place: int, frame: Frame | None) -> Outcome | None:
        worker = self.places[place]
        if frame is None:
            return self._lose(place, worker.child.fate())
        facts, message = frame
        if "broken" in facts:
            raise RunFailed(_worker_process(str(facts["broken"])))
        if "ready" in facts:
            worker.ready, worker.due = True, math.inf if worker.client is None else self._due(True)
            return None
        client = int(facts["client"])
        worker.client, worker.due, self.lost = None, math.inf, 0
        return Failed(client, str(facts["reason"])) if "reason" in facts else Arrived(client, message)

    def _lose(self, place: int, why: str) -> Outcome | None:
        """Another process for this place; the client it trained, if it trained one, has failed."""
        client = self.places[place].client
        self.places[place].child.end()
        self.lost += 1
        if self.lost > MOST_LOST:
            raise RunFailed(_worker_process(why))
        self.places[place] = self._start(place)
        return None if client is None else Failed(client, f"its worker process {why}")


def _worker_process(why: str) -> str:
    return f"federation.processes: a worker process {why}; the last finished round is saved"
