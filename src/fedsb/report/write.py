"""Write the page, whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from fedsb.common.files import write_bytes
from fedsb.errors import InputError
from fedsb.report.load import load_run
from fedsb.report.page import REFRESH, build_page

LIVE_SECONDS = 5


def write_report(runs: Sequence[Path], out: Path, *, live: bool = False) -> Path:
    """Write one HTML page about the run folders `runs` to the file `out`, and return `out`.

    With `live` the page says that the run goes on, and a browser loads it anew every few seconds.

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
    page = build_page([load_run(Path(folder)) for folder in runs], refresh=LIVE_SECONDS if live else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, page.encode("utf-8", errors="replace"))
    return out


def is_live(page: Path) -> bool:
    """Whether the file was written with `live`."""
    with open(page, encoding="utf-8", errors="replace") as file:
        return REFRESH in file.read(2000)
