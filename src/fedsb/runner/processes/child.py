"""Processes of one run: what goes between them (facts as JSON, then a message's bytes), and their threads."""

from __future__ import annotations

import json
import os
import struct
from typing import IO, Any

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


# How many threads each of several processes gets.


def threads(at_once: int) -> int:
    """Torch threads of each of so many processes: a part of the cores, or fewer if the user wants so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    part = max(1, cores // at_once)
    return min(part, int(wanted)) if wanted.isdigit() and int(wanted) else part
