"""Whether two formulas are worth the same, asked of math-verify in a process of its own.

A model can write anything: 9^{9^{9^9}} keeps sympy busy for ever within one bytecode, where no alarm gets
through, and alarms need the main thread. So the work is done elsewhere, and a process that does not answer
in time is ended: what it was asked counts as not the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator

from fedsb.common.child import Answers, Child, next_answer, read_frame, standard_output, start, write_frame
from fedsb.errors import InputError

MOST_BYTES = 4 << 30
"""Address space of the process that does the algebra."""
START_SECONDS = 60.0


@contextlib.contextmanager
def math_judge(timeout_seconds: float = 5.0) -> Iterator[Callable[[str, str], bool]]:
    """A function (answer, gold) -> bool, from any thread, one at a time.

    Raises:
        InputError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("score: math needs math-verify, which is not installed; pip install 'fedsb[eval]'")
    held: list[Child] = []

    def same(answer: str, gold: str) -> bool:
        if not held:
            held.append(_start())
        held[0].send({"answer": answer, "gold": gold})
        verdict = _next(held[0], timeout_seconds)
        if verdict is None:
            held.pop().end()
        return verdict is True

    try:
        yield same
    finally:
        for child in held:
            child.end()


def _start() -> Child:
    """Started by its path: the package around it loads torch, which is more than `MOST_BYTES`."""
    child = start([__file__], Answers())
    if _next(child, START_SECONDS) is None:
        child.end()
        raise InputError("score: math-verify cannot be loaded; pip install 'fedsb[eval]' again")
    return child


def _next(child: Child, seconds: float) -> bool | None:
    """None: no answer in time, or the process is gone."""
    answer = next_answer(child.answers, seconds)
    return None if answer is None or answer[1] is None else bool(answer[1][0]["same"])


# In the other process


def _serve() -> None:
    answers = standard_output()
    _limit_memory()
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable()
    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]

    def parsed(text: str) -> list[object]:
        formulas: list[object] = parse(f"\\boxed{{{text}}}", extraction_config=kinds, parsing_timeout=None)
        return formulas

    def same(question: dict[str, str]) -> bool:
        gold, answer = parsed(question["gold"]), parsed(question["answer"])
        return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))

    write_frame(answers, {"same": True})
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        try:
            verdict = same(frame[0])
        except Exception:  # whatever the algebra stumbles over, the two are not shown to be the same
            verdict = False
        write_frame(answers, {"same": verdict})


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


if __name__ == "__main__":
    _serve()
