"""Atomic writes: a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsb.errors import InputError, RunFailed


def write_bytes(path: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder, synced and renamed."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, values: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(finite(value), ensure_ascii=False) + "\n" for value in values))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """What `write_jsonl` wrote; nothing if there is no file.

    Raises:
        InputError: a line is not JSON.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: a line is not valid JSON ({error})") from None


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Inside the block no other process is in such a block of the same lock file. The lock goes with the
    process, whatever ends it. Where there are no such locks (Windows), nothing is checked.

    Raises:
        RunFailed: another process is.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFailed(f"{what}: another process works on it; wait until it ends, or stop it") from None
        yield


def finite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
