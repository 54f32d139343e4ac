"""Files of JSON lines that only grow and that several processes charge: one writer at a time, every reader up
to date."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from fedsb.common.files import sync_folder

T = TypeVar("T")


class GrowingLines(Generic[T]):
    """The whole lines of a file as records; no line is parsed twice.

    Args:
        parse: (line, records before it) -> its record.
    """

    def __init__(self, path: Path, parse: Callable[[bytes, list[T]], T]):
        self.path, self._parse = path, parse
        self._content, self._records = b"", list[T]()
        self._stamp: tuple[int, ...] = ()

    def read(self, *, every_byte: bool = False) -> list[T]:
        """Every record; none if there is no file. A last line without its end is left out: it was cut off, or
        is being written, and its release has not left.

        Args:
            every_byte: read the file even if it looks as it did at the last call.

        Raises:
            ValueError: what was read before is not there any more.
        """
        stamp = _stamp(self.path)
        if stamp == self._stamp and not every_byte:
            return self._records
        content = whole_lines(self.path)
        if not content.startswith(self._content):
            raise ValueError("it was cut, removed or written again while it was in use")
        records = list(self._records)
        for line in content[len(self._content) :].split(b"\n")[:-1]:
            records.append(self._parse(line, records))
        self._content, self._records, self._stamp = content, records, stamp
        return records

    def append(self, line: str) -> None:
        """One more line; it is on disk when this returns. To be called under a lock, after `read`: what is
        left of a line that was cut off is cut away first, in place."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path, flags, 0o600), "ab") as file:
            file.truncate(len(self._content))
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        if not self._content:
            sync_folder(self.path.parent)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def whole_lines(path: Path) -> bytes:
    """The file up to its last line's end; nothing if there is no file."""
    with suppress(FileNotFoundError):
        content = path.read_bytes()
        return content[: content.rfind(b"\n") + 1]
    return b""


@contextmanager
def locked(paths: Sequence[Path]) -> Iterator[None]:
    """Inside the block this thread alone holds all these files; the first is made if there is none. It waits
    for them, in their order; locks go with their process, whatever ends it. Where there are no such locks
    (Windows), nothing is held."""
    paths[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths[0].touch(mode=0o600)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with ExitStack() as held:
        for path in paths:
            handle = os.open(path, os.O_RDWR)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
