"""`fedsb audit` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsb.cli.common import AsJson, Overrides, out_console, print_json


def audit(
    run_or_config: Annotated[Path, typer.Argument(help="A finished private run's folder, or a config.")],
    canaries: Annotated[
        int | None,
        typer.Option(min=10, help="Gradients of nobody, put in by coins. Default: 10,000 or 0.1 / delta."),
    ] = None,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="The client's own rows are the canaries; they prove less.")
    ] = False,
    set_: Overrides = None,
    json_: AsJson = False,
) -> None:
    """What a private run gives away, measured: a lower bound of epsilon beside the stated one, and the odds.

    One client's part is trained once more with canaries in its steps (Steinke et al. 2023, arXiv 2305.08846).
    Of a run folder the result is kept there, as audit.json and on its report.

    Examples: `fedsb audit runs/private` · `fedsb audit recipes/private/sst2.yaml --canaries 5000 --json`
    """
    from fedsb.cli import terminal
    from fedsb.cli.audited import audit_in_terminal

    result = audit_in_terminal(
        run_or_config, set_ or [], canaries, rows=inputs, console=None if json_ else out_console
    )
    print_json(result) if json_ else terminal.show_audit(result, out_console)
