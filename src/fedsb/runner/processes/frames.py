"""What goes between a run and its worker processes: facts as JSON, then a message's bytes."""

from __future__ import annotations

import json
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
