"""`fedsb reproduce`: the papers' tables, ours beside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedsb.cli.common import Overrides, err_console, out_console, refuse_unused
from fedsb.errors import InputError, RunFailed
from fedsb.report.screen import say

if TYPE_CHECKING:
    from rich.console import Console

    from fedsb.compare.papers.reproduce import Inputs, Reproduction
    from fedsb.compare.papers.table import PaperTable


def reproduce(
    table: Annotated[str | None, typer.Argument(help="A table's name; without it they are listed.")] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="The small form, which two cores can do in some minutes.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="With --reduced: folder or hub id of a small model.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="With --reduced: folder of the data set's files; without it made ones."),
    ] = None,
    arms: Annotated[str, typer.Option(help="Some of the table's arms, by commas. Default: all.")] = "",
    seeds: Annotated[str, typer.Option(help="Whole numbers, by commas.")] = "0",
    out: Annotated[
        Path | None, typer.Option(help="Folder; a taken one is resumed. Default: runs/reproduce-TABLE.")
    ] = None,
    set_: Overrides = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, which share the cores.")] = 1,
) -> None:
    """Run a paper's table, or resume it, and print ours beside the paper's.

    The whole table takes the paper's models and data sets from the hub, on a machine for them. Rates are the
    paper's where they are known; nothing is tuned.

    Examples: `fedsb reproduce` · `fedsb reproduce snli-federated --reduced` ·
    `fedsb reproduce commonsense --reduced --model stories260k --data commonsense --seeds 0,1,2`
    """
    from fedsb.compare.papers.table import load_table

    if table is None:
        options = {"--reduced": reduced or None, "--model": model, "--data": data, "--out": out, "-s": set_}
        refuse_unused(options, "without a table the tables are listed")
        return _list(out_console)
    if not reduced:
        refuse_unused(
            {"--model": model, "--data": data}, "it is for --reduced; -s sets keys of the whole table"
        )
    loaded = load_table(table)
    folder = out or Path("runs") / f"reproduce-{table}{'-reduced' if reduced else ''}"
    try:
        found = _reproduce(table, loaded, folder, reduced, model, data, arms, seeds, set_ or [], jobs)
    except KeyboardInterrupt:
        err_console.print("stopped; the same command resumes", highlight=False)
        raise typer.Exit(130) from None
    show(found, out_console)


def _reproduce(
    name: str,
    table: PaperTable,
    folder: Path,
    reduced: bool,
    model: str | None,
    data: Path | None,
    arms: str,
    seeds: str,
    overrides: Sequence[str],
    jobs: int,
) -> Reproduction:
    from fedsb.cli.compare import LiveBars, PlainLines, names_of, seeds_of
    from fedsb.compare.papers.reproduce import chosen_arms
    from fedsb.compare.papers.reproduce import reproduce as run

    chosen, numbers = chosen_arms(table, names_of("--arms", arms) if arms else []), seeds_of(seeds)
    inputs = _inputs(table, folder, model, data) if reduced else None
    with (
        LiveBars(out_console) if out_console.is_terminal else nullcontext(PlainLines(out_console)) as progress
    ):
        return run(
            name,
            table,
            folder,
            inputs=inputs,
            arms=chosen,
            seeds=numbers,
            overrides=overrides,
            jobs=jobs,
            progress=progress,
        )


def _inputs(table: PaperTable, folder: Path, model: str | None, data: Path | None) -> Inputs:
    """The user's model and data, or made ones."""
    from fedsb.cli.made_inputs import make_inputs
    from fedsb.compare.papers.reproduce import Inputs

    if (model is None) != (data is None):
        raise InputError("--model and --data: name both, or neither and both are made")
    if model is not None and data is not None:
        if not data.is_dir():
            raise InputError(f"--data: {data} is no folder; name that of the data set's files")
        return Inputs(model, data.resolve(), made=False)
    made_model, made_data = make_inputs(table.reduced.made, folder / "made")
    return Inputs(made_model, made_data.resolve(), made=True)


def _list(console: Console) -> None:
    """Every table with its title and source."""
    from fedsb.compare.papers.page import source_of
    from fedsb.compare.papers.table import load_table, table_names

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("table", "what", "arms", "numbers from"):
        shown.add_column(column, overflow="fold")
    for name in table_names():
        table = load_table(name)
        shown.add_row(name, table.title, str(len(table.rows)), source_of(table.model_dump()))
    console.print(shown)
    console.print("next     fedsb reproduce snli-federated --reduced", highlight=False, markup=False)


def show(found: Reproduction, console: Console) -> None:
    """Both columns, what to know about them, and where the page is.

    Raises:
        RunFailed: a run failed.
    """
    from fedsb.compare.papers.page import lines, notices, number, source_of

    document = found.document
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method")
    table.add_column("rank", justify="right")
    table.add_column("column")
    for column in ("paper", "ours", "difference"):
        table.add_column(column, justify="right")
    for method, rank, column, cell in lines(document):
        numbers = number(cell["paper"]), number(cell["ours"]), number(cell["difference"], sign=True)
        table.add_row(method, rank, column, *numbers)
    console.print(table)
    left = sum(cell["ours"] is None for row in document["rows"] for cell in row["cells"])
    said = [f"the paper's numbers: {source_of(document)}", *notices(document)]
    said += [f"{left} more cells of the paper's, which were not run, are on the page"] if left else []
    say(said, console)
    console.print(f"report   {found.folder / 'report.html'}", highlight=False, markup=False)
    if found.failed:
        listed = "\n  ".join(f"{item['run']}: {item['problem']}" for item in found.failed)
        raise RunFailed(f"not every run was finished; the same command tries again\n  {listed}")
