"""`fedsb predict`: labels or answers to a file's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedsb.cli.options import evaluation_config
from fedsb.cli.terminal import watching
from fedsb.common.files import finite, write_jsonl
from fedsb.common.printable import printable
from fedsb.errors import InputError
from fedsb.report.units import plural


def predict_in_terminal(
    run: Path, file: str, out: Path | None, overrides: Sequence[str], console: Console
) -> None:
    """Write the file, or print an object per line and nothing else.

    Raises:
        InputError: the file is there already, or as `predict`.
    """
    from fedsb.runner.finished_model import check_finished
    from fedsb.runner.folder import check_place
    from fedsb.runner.predict import predict

    check_finished(run)
    if out is not None and out.exists():
        raise InputError(f"--out: {out} is there already; name a new file")
    if out is not None:
        check_place(out.absolute().parent)
    config = evaluation_config(run, None, overrides)
    with watching(None if out is None else console) as progress:
        records = predict(run, config, file, progress)
    if out is None:
        for record in records:
            print(printable(json.dumps(finite(record), ensure_ascii=False), None))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(out, records)
    console.print(f"wrote {plural(len(records), 'row')} to {out}", highlight=False, markup=False)
