"""The same clients as tasks of Ray: actors that keep a base model, on this machine or on a cluster.

A client always goes to the same place, as in `pool`. An actor that dies is replaced by one with the state of
the last finished round, and its client is asked once more; a client that loses two has failed, and so has one
whose actor answers nothing for too long.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from fedsb.common.cores import WAITING
from fedsb.config import RunConfig
from fedsb.config.sections.federation import RayEngine
from fedsb.errors import InputError, RunFailed, explain
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.report.progress import Progress
from fedsb.runner.clients import AskClients, MessageTo
from fedsb.runner.processes.pool import LOAD_SECONDS, MOST_LOST, seconds_of
from fedsb.runner.processes.worker import answer, open_run

TRIES = 2
"""Of one client in one round, before it has failed."""


class Worker:
    """An actor: one loaded model, and the clients that are trained with it one after the other."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.client_of: Any = None

    def open(self, request: dict[str, Any]) -> str | None:
        """Load the run; None, or why it cannot be."""
        try:
            self.client_of = open_run(request)
        except Exception as error:
            return explain(error)
        return None

    def answer(self, client: int, broadcast: bytes) -> tuple[dict[str, Any], bytes]:
        """The client's update, or the reason why there is none."""
        assert self.client_of is not None
        return answer(self.client_of, client, broadcast)


@contextmanager
def ray_workers(config: RunConfig, folder: Path, progress: Progress) -> Iterator[AskClients]:
    """Peers that train in `federation.engine.workers` actors, which start with the first cohort.

    Raises (while answers are asked for):
        InputError: no Ray at this address, or too few cores in it.
        RunFailed: a worker could not load the run, or one after the other was lost.
    """
    places = _Places(config, folder, progress)
    try:
        yield places.ask
    finally:
        places.end()


@dataclass(frozen=True)
class _Task:
    """A client at a place with its broadcast; when it must be done, infinity where nothing sets an end."""

    place: int
    client: int
    message: bytes
    due: float


@dataclass
class _Places:
    """All actors, by their place.

    Attributes:
        running: Ray's reference of an answer -> what is asked.
        lost: actors lost since the last answer.
    """

    config: RunConfig
    folder: Path
    progress: Progress
    actors: list[Any] = field(default_factory=list)
    running: dict[Any, _Task] = field(default_factory=dict)
    lost: int = 0
    begun: bool = False

    def ask(self, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        """`clients.AskClients`."""
        if not self.actors:
            self._begin()
        waiting: dict[int, list[int]] = defaultdict(list)
        for client in reversed(cohort):
            waiting[client % len(self.actors)].append(client)
        for place in list(waiting):
            self._next_of(place, waiting, message_to)
        arrived: dict[int, Outcome] = {}
        tries: Counter[int] = Counter()
        for client in cohort:
            while client not in arrived:
                task, outcome = self._next()
                tries[task.client] += 1
                if outcome is None and tries[task.client] < TRIES:
                    self._send(task.place, task.client, task.message)
                    continue
                arrived[task.client] = outcome or Failed(
                    task.client, f"its Ray worker was lost {TRIES} times"
                )
                if waiting[task.place]:
                    self._next_of(task.place, waiting, message_to)
            self.progress.client_ends(client, getattr(arrived[client], "reason", None))
            yield arrived.pop(client)

    def end(self) -> None:
        """End the actors, and Ray itself where it was started here."""
        for actor in self.actors:
            ray.kill(actor)
        if self.begun:
            ray.shutdown()

    @property
    def engine(self) -> RayEngine:
        engine = self.config.federation.engine
        assert isinstance(engine, RayEngine)
        return engine

    @property
    def threads(self) -> int:
        number = self.config.training.threads
        return 1 if number == "auto" else number

    def _begin(self) -> None:
        self.progress.stage(f"starting {self.engine.workers} workers of Ray")
        if not ray.is_initialized():
            connect(self.engine, self.threads)
            self.begun = True
        _check_cores(self.engine.workers, self.threads, ray.cluster_resources().get("CPU", 0.0))
        self.actors = [self._actor() for _ in range(self.engine.workers)]
        for opened in [self._open(actor) for actor in self.actors]:
            self._loaded(opened)

    def _actor(self) -> Any:
        variables = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false", **WAITING}
        gpus = ray.cluster_resources().get("GPU", 0.0) if self.config.model.device != "cpu" else 0.0
        share = min(1.0, gpus / self.engine.workers)
        options = {"num_cpus": self.threads, "num_gpus": share, "runtime_env": {"env_vars": variables}}
        return ray.remote(Worker).options(**options).remote(self.threads)

    def _open(self, actor: Any) -> Any:
        """Ray shows an actor its own GPU alone, so each is the first."""
        config = self.config.model_dump(mode="json")
        return actor.open.remote({"config": config, "folder": str(self.folder.resolve()), "number": 0})

    def _loaded(self, opened: Any) -> None:
        try:
            problem = ray.get(opened, timeout=LOAD_SECONDS)
        except RayError as error:
            problem = f"was lost while it loaded the run ({type(error).__name__})"
        if problem is not None:
            raise RunFailed(_said(problem))

    def _next_of(self, place: int, waiting: dict[int, list[int]], message_to: MessageTo) -> None:
        client = waiting[place].pop()
        self._send(place, client, message_to(client))

    def _send(self, place: int, client: int, message: bytes) -> None:
        due = time.monotonic() + seconds_of(self.config)
        reference = self.actors[place].answer.remote(client, message)
        self.running[reference] = _Task(place, client, message, due)

    def _next(self) -> tuple[_Task, Outcome | None]:
        """The next task that is done with, one way or the other; without an outcome its actor was lost."""
        due = min(task.due for task in self.running.values())
        left = None if due == math.inf else max(0.0, due - time.monotonic())
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=left)
        if not done:
            late = next(reference for reference, task in self.running.items() if task.due == due)
            task = self.running.pop(late)
            self._replace(task.place, "did not answer in time")
            return task, Failed(task.client, "its Ray worker did not answer in time")
        task = self.running.pop(done[0])
        try:
            facts, message = ray.get(done[0])
        except RayError as error:
            self._replace(task.place, f"was lost ({type(error).__name__})")
            return task, None
        self.lost = 0
        if "reason" in facts:
            return task, Failed(task.client, str(facts["reason"]))
        return task, Arrived(task.client, message)

    def _replace(self, place: int, why: str) -> None:
        """Another actor, with the base weights of the last finished round."""
        ray.kill(self.actors[place])
        self.lost += 1
        if self.lost > MOST_LOST:
            raise RunFailed(_said(why))
        self.actors[place] = self._actor()
        self._loaded(self._open(self.actors[place]))


def connect(engine: RayEngine, threads: int) -> None:
    """Start a Ray of this machine, or join the cluster.

    Raises:
        InputError: nothing answers at the address.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if engine.address is None:
        own = {"num_cpus": engine.workers * threads, "include_dashboard": False}
        ray.init("local", **own, **quiet)
        return
    try:
        ray.init(engine.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise InputError(
            f"federation.engine.address: no Ray answers at {engine.address!r} ({reason}); start one with "
            "`ray start --head`, or leave address out"
        ) from None


def _check_cores(workers: int, threads: int, cores: float) -> None:
    if workers * threads > cores:
        raise InputError(
            f"federation.engine.workers: {workers} workers of {threads} threads need as many cores, this Ray "
            f"has {cores:g}; take fewer workers, or fewer training.threads"
        )


def _said(why: str) -> str:
    return f"federation.engine: a Ray worker {why}; the last finished round is saved"
