"""Write the page, whole or not at all."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedsb.errors import InputError
from fedsb.report.load import load_run
from fedsb.report.page import build_page


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about the run folders `runs` to the file `out`, and return `out`.

    Guarantees: the page needs no other file, no script and no network; the same run folders give the same
    bytes; `out` is replaced in one step, so an interrupted call leaves the old page in place.

    Raises InputError for a folder that is not a run folder, for no folder at all, and if `out` is a folder.
    """
    if not runs:
        raise InputError("runs: expected at least one run folder, found none; name the folders to report on")
    out = Path(out)
    if out.is_dir():
        raise InputError(
            f"{out}: expected a file name for the page, found a folder; use {out / 'report.html'}"
        )
    page = build_page([load_run(Path(folder)) for folder in runs])
    _replace(out, page.encode("utf-8", errors="replace"))
    return out


def _replace(out: Path, content: bytes) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
