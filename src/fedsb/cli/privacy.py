"""`fedsb privacy` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsb.cli.common import AsJson, out_console, print_json, refuse_unused
from fedsb.errors import InputError


def privacy(
    ledger: Annotated[
        Path | None,
        typer.Option(help="Instead: what was spent, by a node.yaml or a ledger's .jsonl."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Less than 1 / examples, or 1 / clients.")] = None,
    examples: Annotated[int | None, typer.Option(help="Training examples of one client.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples of a batch on average (Poisson sampling).")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the examples per round.")] = None,
    clients: Annotated[
        int | None, typer.Option(help="In place of these three: all clients, each to be protected whole.")
    ] = None,
    cohort: Annotated[
        int | None, typer.Option(help="Clients of a round on average (Poisson sampling).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the run. Default: 1.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Find the noise for this budget.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Or: find the epsilon of noise that is so many times the clip norm.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Calibrate the noise of private training to a budget, account for a noise, or show what rows have spent.

    Examples: `fedsb privacy --examples 20000 --batch-size 32 --epochs 1 --rounds 3 --epsilon 3 --delta 4e-6`
    · `fedsb privacy --examples 20000 --batch-size 32 --epochs 3 --noise-multiplier 0.8 --delta 4e-6 --json`
    · `fedsb privacy --clients 1000 --cohort 100 --rounds 50 --epsilon 8 --delta 1e-4`
    · `fedsb privacy --ledger node.yaml`
    """
    from fedsb.cli import terminal

    numbers = {
        "--examples": examples,
        "--batch-size": batch_size,
        "--epochs": epochs,
        "--clients": clients,
        "--cohort": cohort,
        "--rounds": rounds,
        "--epsilon": epsilon,
        "--noise-multiplier": noise_multiplier,
    }
    if ledger is not None:
        refuse_unused(numbers, "--ledger says what was spent")
        from fedsb.cli.ledger_report import ledger_report

        report = ledger_report(ledger, delta)
        return print_json(report) if json_ else terminal.show_ledger(report, out_console)
    if delta is None:
        raise InputError("--delta: needed; expected less than 1 / examples, or 1 / clients")
    from fedsb.cli.privacy_question import PrivacyQuestion, answer

    question = PrivacyQuestion(
        examples=examples,
        batch_size=batch_size,
        epochs=epochs,
        clients=clients,
        cohort=cohort,
        rounds=1 if rounds is None else rounds,
        delta=delta,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
    )
    result = answer(question)
    print_json(result) if json_ else terminal.show_privacy(result, out_console)
