"""Whether two formulas are worth the same, asked of math-verify in a process of its own.

A model can write anything: 9^{9^{9^9}} keeps sympy busy for ever within one bytecode, where no alarm gets
through, and alarms need the main thread. So the work is done elsewhere, one line of JSON asked and one
answered, and a process that does not answer in time is ended: what it was asked counts as not the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

from fedsb.errors import InputError

MOST_BYTES = 4 << 30
"""Of address space for the process that does the algebra."""
START_SECONDS = 60.0


@contextlib.contextmanager
def math_judge(timeout_seconds: float = 5.0) -> Iterator[Callable[[str, str], bool]]:
    """A function (answer, gold) -> bool, from any thread, one at a time.

    Raises:
        InputError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("score: math needs math-verify, which is not installed; pip install 'fedsb[eval]'")
    workers: list[_Worker] = []

    def same(answer: str, gold: str) -> bool:
        if not workers:
            workers.append(_start())
        verdict = _ask(workers[0], {"answer": answer, "gold": gold}, timeout_seconds)
        if verdict is None:
            _end(workers.pop())
        return verdict is True

    try:
        yield same
    finally:
        for worker in workers:
            _end(worker)


class _Worker:
    """A process, and a queue of the lines it answers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self.lines.put(line)
        self.lines.put("")  # it has ended


def _start() -> _Worker:
    worker = _Worker()
    if _next(worker, START_SECONDS) is None:
        _end(worker)
        raise InputError("score: math-verify cannot be loaded; pip install 'fedsb[eval]' again")
    return worker


def _ask(worker: _Worker, question: dict[str, str], seconds: float) -> bool | None:
    """None: no answer in time, or the process is gone."""
    stdin: IO[str] = worker.process.stdin  # type: ignore[assignment]
    try:
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
    except OSError:
        return None
    return _next(worker, seconds)


def _next(worker: _Worker, seconds: float) -> bool | None:
    try:
        line = worker.lines.get(timeout=seconds)
    except queue.Empty:
        return None
    return bool(json.loads(line)) if line else None


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    for stream in (worker.process.stdin, worker.process.stdout):
        with contextlib.suppress(OSError, ValueError):
            stream.close()  # type: ignore[union-attr]


# In the other process


def _serve() -> None:
    _limit_memory()
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable()
    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]

    def parsed(text: str) -> list[object]:
        found: list[object] = parse(f"\\boxed{{{text}}}", extraction_config=kinds, parsing_timeout=None)
        return found

    def same(question: dict[str, str]) -> bool:
        gold, answer = parsed(question["gold"]), parsed(question["answer"])
        return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))

    print("true", flush=True)
    for line in sys.stdin:
        try:
            verdict = same(json.loads(line))
        except Exception:  # whatever the algebra stumbles over, the two are not shown to be the same
            verdict = False
        print(json.dumps(verdict), flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


if __name__ == "__main__":
    _serve()
