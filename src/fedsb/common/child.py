"""Python processes that are asked and answer in frames: facts as JSON, then the bytes of a message.

A child ends itself when its standard input closes, as it does when its parent is gone.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from fedsb.common.cores import WAITING, usable_cores

LENGTHS = struct.Struct(">IQ")

Frame = tuple[dict[str, Any], bytes]


def write_frame(stream: IO[bytes], facts: dict[str, Any], payload: bytes = b"") -> None:
    """Write and flush one frame."""
    text = json.dumps(facts).encode()
    stream.write(LENGTHS.pack(len(text), len(payload)))
    stream.write(text)
    stream.write(payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """The next frame; None where the stream ends, within a frame too."""
    start = stream.read(LENGTHS.size)
    if len(start) < LENGTHS.size:
        return None
    sizes = LENGTHS.unpack(start)
    text, payload = (stream.read(size) for size in sizes)
    return None if (len(text), len(payload)) != sizes else (json.loads(text), payload)


# The parent's side


@dataclass(eq=False)
class Child:
    """One process. Its frames arrive in `answers`, and None when it has ended."""

    process: subprocess.Popen[bytes]
    log: IO[str]
    answers: Answers

    def send(self, facts: dict[str, Any], payload: bytes = b"") -> None:
        """Write one frame, if the process still reads; that it died is said in `answers`."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            write_frame(self.process.stdin, facts, payload)

    def listen(self) -> None:
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):
            while (frame := read_frame(self.process.stdout)) is not None:
                self.answers.put((self, frame))
        self.process.stdout.close()
        self.answers.put((self, None))

    def fate(self) -> str:
        """How it ended, and the last line of what it wrote to standard error."""
        status = self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return f"ended with status {status}" + (f" ({lines[-1]})" if lines else "")

    def end(self) -> None:
        """Kill it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.log):
            with suppress(OSError, ValueError):  # what it did not read any more
                stream.close()  # type: ignore[union-attr]


Answers = Queue[tuple[Child, Frame | None]]
"""Frames of one child or of several, as they come; None: it ended."""


def start(program: list[str], answers: Answers, at_once: int = 1, threads: int | None = None) -> Child:
    """A process of Python with these arguments, of `at_once` that share the cores.

    Args:
        threads: of torch in it; None: its part of the cores.
    """
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-P", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": str(threads or part_of_cores(at_once)), **WAITING},
        start_new_session=True,  # Ctrl-C is for this process to handle
    )
    child = Child(process, log, answers)
    Thread(target=child.listen, daemon=True).start()
    return child


def next_answer(answers: Answers, seconds: float | None) -> tuple[Child, Frame | None] | None:
    """What comes next; None: nothing in so many seconds. None as their number: however long it takes."""
    with suppress(Empty):
        return answers.get(timeout=seconds)
    return None


def part_of_cores(at_once: int) -> int:
    """Torch threads of each of so many processes: a part of the cores, or fewer if the user wants so."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    part = max(1, usable_cores() // at_once)
    return min(part, int(limit)) if limit.isdigit() and int(limit) else part


# The child's side


def standard_output() -> IO[bytes]:
    """Where a child answers. What libraries print goes to standard error from now on: it is no answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers
