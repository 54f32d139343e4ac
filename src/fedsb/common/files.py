"""Atomic writes: a file is there whole or not at all. Locks, and JSON that is read back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsb.common.strict_json import parse_json
from fedsb.errors import InputError, RunFailed

LOCK = ".lock"
"""The lock's name in a folder that one process at a time may work on."""


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write through a new temporary file in the same folder, synced and renamed. A link there is replaced.

    Args:
        private: only this user may read it.

    Raises:
        InputError: `private`, and the path is a link.
    """
    if private and path.is_symlink():
        raise InputError(f"{path}: this is a link, and a private file is written through none; remove it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(temporary, flags, 0o600 if private else 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put on disk which files the folder has. Windows cannot and need not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of writes that were killed. Nobody else may be writing there."""
    for part in folder.glob(".*.part"):
        if part.is_symlink() or part.is_file():
            part.unlink()


def write_text(path: Path, content: str, *, private: bool = False) -> None:
    write_bytes(path, content.encode("utf-8"), private=private)


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", private=private)


def write_jsonl(path: Path, values: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(finite(value), ensure_ascii=False) + "\n" for value in values))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: expected JSON that can be read, found: {reason(error)}") from None
    return _object(value, str(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """What `write_jsonl` wrote; nothing if there is no file.

    Raises:
        InputError: a line is not JSON, or no object.
    """
    if not path.exists():
        return []
    try:
        values = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: a line is not valid JSON ({reason(error)})") from None
    return [_object(value, f"{path}, line {number}") for number, value in enumerate(values, start=1)]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected keys and values, found a {type(value).__name__}")
    return value


def reason(error: BaseException) -> str:
    """Why a file cannot be read, without anything that is in it."""
    if isinstance(error, UnicodeDecodeError):
        return "bytes that are not UTF-8"
    if isinstance(error, MemoryError):
        return "more than fits into memory"
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Inside the block no other process is in such a block of the same lock file, removed at its end.

    The lock goes with the process, whatever ends it. Windows has no such locks, and nothing is checked there.

    Raises:
        RunFailed: another process is.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(_opened(lock), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.path.samestat(os.fstat(file.fileno()), os.lstat(lock))  # not removed meanwhile
        except OSError:
            there = False
        if not there:
            raise RunFailed(f"{what}: another process works on it; wait until it ends, or stop it")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _opened(lock: Path) -> int:
    """The lock file, never what a link in its place points to."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(lock, flags, 0o600)
    except OSError as error:
        raise InputError(f"{lock}: cannot be locked ({error.strerror}); remove what is there") from None


def finite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
