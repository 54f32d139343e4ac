"""`fedsb privacy` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from fedsb.cli_common import AsJson, out_console, print_json


def privacy(
    delta: Annotated[float, typer.Option(help="Less than 1 / examples, or 1 / clients.")],
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
    rounds: Annotated[int, typer.Option(help="Rounds of the run.")] = 1,
    epsilon: Annotated[float | None, typer.Option(help="Find the noise for this budget.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Or: find the epsilon of noise that is so many times the clip norm.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Calibrate the noise of private training to a budget, or account for a noise. Reads no data.

    Examples: `fedsb privacy --examples 20000 --batch-size 32 --epochs 1 --rounds 3 --epsilon 3 --delta 1e-5`
    · `fedsb privacy --examples 20000 --batch-size 32 --epochs 3 --noise-multiplier 0.8 --delta 1e-5 --json`
    · `fedsb privacy --clients 1000 --cohort 100 --rounds 50 --epsilon 8 --delta 1e-4`
    """
    from fedsb.privacy_question import PrivacyQuestion, answer

    asked = PrivacyQuestion(
        examples=examples,
        batch_size=batch_size,
        epochs=epochs,
        clients=clients,
        cohort=cohort,
        rounds=rounds,
        delta=delta,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
    )
    found = answer(asked)
    if json_:
        return print_json(found)
    from fedsb import terminal

    terminal.show_privacy(found, out_console)
