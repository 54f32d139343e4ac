"""What `fedsb audit` does between parsing and printing: an audit, which a run folder keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsb.cli.common import refuse_unused
from fedsb.cli.terminal import watching
from fedsb.common.files import finite, write_json
from fedsb.config import RunConfig
from fedsb.report import write_report
from fedsb.runner.audit import AUDIT, audit, check_rows_are_here, stated_of


def audit_in_terminal(
    place: Path, overrides: Sequence[str], canaries: int | None, *, rows: bool, console: Console | None
) -> dict[str, Any]:
    """What was found. place: a run folder, or a config. rows: as `audit` takes it.

    Raises:
        InputError: it is neither, or as `audit`.
    """
    run = place if place.is_dir() else None
    if run is not None:
        refuse_unused({"-s": list(overrides)}, "a run is audited as it was")
        check_rows_are_here(run)
    config = RunConfig.from_yaml(place if run is None else run / "config.yaml", overrides)
    stated = None if run is None else stated_of(run)
    with watching(console) as progress:
        result = audit(config, stated=stated, canaries=canaries, rows=rows, progress=progress)
    if run is not None:
        write_json(run / AUDIT, finite(result))
        write_report([run], run / "report.html")
    return result
