"""What a library raises, as an input error that names the config key which led there."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsb.errors import FedsbError, InputError

DEBUG = "FEDSB_DEBUG"
"""Environment variable that --debug sets."""
PACKAGE = Path(__file__).resolve().parents[1]
LONGEST = 300
OF_LIBRARIES = (RuntimeError, OSError, MemoryError)
"""Kinds that come out of compiled code called from ours, and that our own code never raises by mistake."""


@contextmanager
def stage(
    key: str, doing: str, cure: str, *, quotes: bool = True, becomes: type[FedsbError] = InputError
) -> Iterator[None]:
    """A part of a run in which libraries work on what the user gave.

    Their exceptions become one error "KEY: DOING failed (KIND: TEXT); CURE". Ours pass as they are, those on
    purpose and those of a defect in our own code.

    Args:
        quotes: whether the library's text is shown; false where it may hold a cell of the data.
        becomes: RunFailed where no input was wrong.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, FedsbError) or not _is_error(error) or _is_our_defect(error):
            raise
        said = f"{type(error).__name__}: {in_a_line(error)}" if quotes else type(error).__name__
        raise becomes(f"{key}: {doing} failed ({said}); {cure}") from error


def in_a_line(error: BaseException) -> str:
    """The first line of an exception's text, of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return lines[0].rstrip(" .:")[:LONGEST]


def show_if_debugging(error: BaseException) -> None:
    """The traceback of an error that is only named otherwise, where --debug asks for it."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)


def _is_error(error: BaseException) -> bool:
    """No interrupt; a panic in a library's Rust is one, though no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _is_our_defect(error: BaseException) -> bool:
    """Whether it was raised by a line of this package and not by what it called."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE)
    return ours and not isinstance(error, OF_LIBRARIES)
