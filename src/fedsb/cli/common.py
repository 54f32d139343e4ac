"""What commands share: consoles, options, JSON on stdout."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fedsb.common.printable import printable
from fedsb.report.screen import Screen

out_console, err_console = Screen(soft_wrap=True), Screen(stderr=True, soft_wrap=True)

Overrides = Annotated[list[str] | None, typer.Option("--set", "-s", help="key.path=value; repeat for more.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def print_json(value: Any) -> None:
    """One JSON document; what is not finite becomes null."""
    import json

    from fedsb.common.files import finite

    print(printable(json.dumps(finite(value), indent=2, ensure_ascii=False), None, keep="\n"))
