"""What a private run keeps to itself: the folder `private` in its own folder, open to its owner alone.

    private/sampling-secret   256 bits of the operating system, behind every Poisson batch and cohort
    private/partition.json    which example is whose

Nobody who is shown a run may see this folder: who knows the batches has no amplification by sampling against
him. Nothing that makes a report, a model card or an export reads it.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from fedsb.common.files import write_bytes
from fedsb.errors import InputError
from fedsb.privacy.keystream import KEY_BYTES, Keystream

PRIVATE = "private"
SECRET = "sampling-secret"


@dataclass(frozen=True)
class SampleSecret:
    """The secret of one run; made at its first use, read again at every later one.

    Attributes:
        run: the run's folder.
        insecure_seed: for tests alone: streams that repeat.
        answer: of what these streams are alone.
    """

    run: Path
    insecure_seed: int | None = None
    answer: str = ""

    def stream(self, *path: str | int) -> Keystream:
        """The secret's stream for one purpose.

        Raises:
            InputError: the secret cannot be read.
        """
        if self.insecure_seed is not None:
            return Keystream.derived(str(self.insecure_seed).encode(), *path)
        return Keystream.derived(sampling_secret(self.run), self.answer, *path)

    def once(self) -> SampleSecret:
        """With streams that nobody else gets, from the same secret or a copy of it."""
        return replace(self, answer=secrets.token_hex(16))


def sampling_secret(run: Path) -> bytes:
    """The run's secret, made by the operating system where there is none.

    Raises:
        InputError: it is not whole, or may not be read.
    """
    file = run / PRIVATE / SECRET
    if not file.is_symlink() and not file.exists():
        write_privately(file, secrets.token_bytes(KEY_BYTES))
    try:
        with open(os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as opened:
            content = opened.read(KEY_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); remove it: the run makes another"
        ) from None
    if len(content) != KEY_BYTES:
        raise InputError(
            f"{file}: expected {KEY_BYTES} bytes, found {len(content)}; remove it: the run makes another"
        )
    return content


def write_privately(file: Path, content: bytes) -> None:
    """Write a file that its owner alone may open (0600), in a folder of that kind (0700): whole or not at
    all."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(file.parent, 0o700)
    write_bytes(file, content, private=True)
