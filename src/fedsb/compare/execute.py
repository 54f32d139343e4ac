"""Do runs that are not done: one after the other here, or several at a time in processes of their own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from fedsb.common.child import Answers, Child, Frame, next_answer, start
from fedsb.compare.arms import Job
from fedsb.compare.perform import NO_HOOKS, perform
from fedsb.compare.progress import OneRun, Progress

SILENT_SECONDS = 1800.0
"""Without a word of any run, after which that is said."""
Problems = dict[str, str]
"""Name of a run -> why it failed."""
HooksOf = Callable[[str], Mapping[str, Any]]


def no_hooks(name: str) -> Mapping[str, Any]:
    return NO_HOOKS


def execute(
    jobs: Sequence[Job], at_once: int, progress: Progress, hooks: HooksOf = no_hooks, *, after: int = 0
) -> Problems:
    """Do the jobs that are not finished, `at_once` at a time; what failed does not stop the others.

    hooks: of a run's name the functions it calls, which none in a process of its own can. after: how many
    runs are to follow these.
    """
    left = [job for job in jobs if not job.finished()]
    if not left:
        return {}
    progress.begins(len(left), after)
    return _one_by_one(left, progress, hooks) if at_once == 1 else _several(left, at_once, progress)


def _one_by_one(jobs: Sequence[Job], progress: Progress, hooks: HooksOf) -> Problems:
    problems: Problems = {}
    for job in jobs:
        progress.run_begins(job.name)
        watcher = OneRun(partial(progress.run_at, job.name))
        problem = perform(job.config, job.folder, watcher, asks=job.asks, hooks=hooks(job.name))
        if problem is not None:
            problems[job.name] = problem
        progress.run_ends(job.name, problem)
        gc.collect()  # the model of this run before the next one's is loaded
    return problems


def _several(jobs: Sequence[Job], at_once: int, progress: Progress) -> Problems:
    """Processes report through one queue, which only this thread reads."""
    waiting, ended, answers = list(reversed(jobs)), dict[str, str | None](), Answers()
    with _children() as children:
        while waiting or children:
            while waiting and len(children) < at_once:
                job = waiting.pop()
                progress.run_begins(job.name)
                children[_start(job, at_once, answers)] = job
            child, frame = _next(answers, children.values(), progress)
            name = children[child].name
            if frame is None:
                problem = ended.setdefault(name, f"its process {child.fate()}")
                progress.run_ends(name, problem)
                del children[child]
                child.end()
            elif "ended" in frame[0]:
                ended[name] = frame[0]["ended"]
            else:
                progress.run_at(name, frame[0]["share"], frame[0]["text"])
    return {name: problem for name, problem in ended.items() if problem is not None}


def _next(answers: Answers, running: Iterable[Job], progress: Progress) -> tuple[Child, Frame | None]:
    """The next answer; a line at times while there is none. What a run may take cannot be known here."""
    while (answer := next_answer(answers, SILENT_SECONDS)) is None:
        names = ", ".join(job.name for job in running)
        progress.stage(f"nothing new of {names} for {SILENT_SECONDS / 60:g} minutes; Ctrl-C stops")
    return answer


@contextmanager
def _children() -> Iterator[dict[Child, Job]]:
    """Processes and their runs; those left at the end, as after Ctrl-C, are stopped."""
    children: dict[Child, Job] = {}
    try:
        yield children
    finally:
        for child in children:
            child.end()


def _start(job: Job, at_once: int, answers: Answers) -> Child:
    """A process for one run."""
    child = start(["-m", "fedsb.compare.perform"], answers, at_once)
    child.send({"config": job.config.model_dump(mode="json"), "folder": str(job.folder), "asks": job.asks})
    return child
