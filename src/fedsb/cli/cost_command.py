"""`fedsb cost`: its options."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from fedsb.cli.common import AsJson, With, out_console, print_json


def cost(
    model: Annotated[str, typer.Option(help="Hub id or folder; only its config.json is read.")],
    clients: Annotated[int, typer.Option(help="Clients; all take part in every round.")],
    rank: Annotated[
        int | None, typer.Option(help="Needed, unless each of --methods has a rank of its own.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Add the bytes of so many rounds.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="NAME or NAME:RANK, separated by commas. Default: all that fit.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Layer names, separated by commas. Default: the model family's.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Heads of methods that train a core.")] = None,
    labels: Annotated[
        int | None, typer.Option(help="Put a classification head of so many classes on the model.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start of Fed-SB's bases: gradient (the default), weights or orthonormal."),
    ] = None,
    upload: Annotated[
        str | None,
        typer.Option(help="What clients send of a gradient: factors (the default), sketch or whole."),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(help="As method.init.ranks: equal (the default), or the most of a spectrum's."),
    ] = None,
    upload_dtype: Annotated[
        str, typer.Option(help="What an update's numbers travel as: float32, float16 or bfloat16.")
    ] = "float32",
    control_variates: Annotated[
        bool, typer.Option("--control-variates", help="As federation.control_variates: numbers twice.")
    ] = False,
    averaged_moments: Annotated[
        bool, typer.Option("--averaged-moments", help="As training.moments: averaged: numbers three times.")
    ] = False,
    secure_aggregation: Annotated[
        float | None,
        typer.Option(help="Add keys and shares of masks; the threshold, e.g. 0.67, decides among over 50."),
    ] = None,
    json_: AsJson = False,
    with_: With = None,
) -> None:
    """Count the numbers and bytes that each method trains and sends, from a model's config alone.

    Examples: `fedsb cost --model bert-base-cased --rank 32 --clients 3 --labels 3` ·
    `fedsb cost --model models/mistral --clients 25 --rounds 10 --methods fed-sb:200,fedit:32 --json`
    """
    with _uncollected():
        from fedsb.cli.cost import Question, check_used, costs
        from fedsb.cli.cost_beside import Beside

        check_used(methods, rank=rank, heads=heads, init=init, upload=upload, ranks=ranks)
        start, sent = init or "gradient", upload or ("factors" if secure_aggregation is None else "sketch")
        beside = Beside(control_variates, averaged_moments, secure_aggregation)
        asked = clients, start, rank, rounds, methods, targets, heads, labels, sent, upload_dtype
        question = Question(*asked, beside, ranks or "equal")
        table = costs(model, question)
    if json_:
        return print_json(table.to_json())
    from fedsb.cli import terminal

    terminal.show_costs(table, out_console)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: a command that mostly imports is a fifth faster without."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
