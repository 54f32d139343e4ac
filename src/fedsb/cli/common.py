"""What commands share: consoles, options, JSON on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsb.common.printable import printable
from fedsb.common.registry import add_files
from fedsb.errors import InputError
from fedsb.report.screen import Screen

out_console, err_console = Screen(soft_wrap=True), Screen(stderr=True, soft_wrap=True)

Overrides = Annotated[list[str] | None, typer.Option("--set", "-s", help="key.path=value; repeat for more.")]


def _run(files: list[Path] | None) -> list[Path] | None:
    if files:
        add_files(files)
    return files


With = Annotated[
    list[Path] | None,
    typer.Option("--with", callback=_run, help="Python file that registers methods; repeat for more."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def print_json(value: Any) -> None:
    """One JSON document; what is not finite becomes null."""
    import json

    from fedsb.common.files import finite

    print(printable(json.dumps(finite(value), indent=2, ensure_ascii=False), None, keep="\n"))


def refuse_unused(options: Mapping[str, Any], reason: str) -> None:
    """Refuse the first of these options that was given.

    Raises:
        InputError: names it, and why it has no effect.
    """
    given = next((name for name, value in options.items() if value not in (None, [])), None)
    if given is not None:
        raise InputError(f"{given}: has no effect here, {reason}; leave it out")
