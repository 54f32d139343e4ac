"""`fedsb compare` on the terminal: lists read, bars over all runs, plain lines elsewhere, the final table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fedsb.cli.options import check_compare_overrides
from fedsb.cli.terminal import default_folder
from fedsb.compare.arms import number
from fedsb.compare.comparison import Comparison, compare
from fedsb.compare.config import settings_from_yaml
from fedsb.compare.intervals import CONFIDENCE, FEWEST_SEEDS, what_shows
from fedsb.compare.page.tables import APART, change, value
from fedsb.config import RunConfig
from fedsb.errors import InputError, RunFailed
from fedsb.report.metrics import describe, show
from fedsb.report.screen import say, shown
from fedsb.report.units import THIN, human_bytes, percent, plural


def names_of(option: str, text: str) -> list[str]:
    """The items of `a,b,c`."""
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    if not all(items):
        raise InputError(f"{option}: an item is empty in {text!r}; separate items by single commas")
    return items


def seeds_of(text: str) -> list[int]:
    """The seeds of `0,1,2`."""
    items = names_of("--seeds", text)
    wrong = [item for item in items if not item.removeprefix("-").isdecimal()]
    if wrong:
        raise InputError(f"--seeds: expected whole numbers such as 0,1,2, found {wrong[0]!r}")
    return [int(item) for item in items]


def comparison_folder(config: Path) -> Path:
    """runs/compare-NAME, numbered if taken."""
    name = config.name.removeprefix("compare-")
    return default_folder(config.with_name(f"compare-{name}"), resume=False)


def compare_in_terminal(
    config_file: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    jobs: int,
    console: Console,
) -> Comparison:
    config = RunConfig.from_yaml(config_file, overrides)
    settings = settings_from_yaml(config_file, overrides)
    check_compare_overrides(overrides, methods, settings)
    with LiveBars(console) if console.is_terminal else nullcontext(PlainLines(console)) as progress:
        return compare(config, settings, methods, seeds, folder, jobs=jobs, progress=progress)


def how_to_resume(
    config: Path,
    overrides: Sequence[str],
    methods: str,
    seeds: str,
    folder: Path,
    jobs: int,
    files: Sequence[Path] = (),
) -> str:
    """What to say after Ctrl-C: the same command, with its folder."""
    words = ["fedsb", "compare", str(config), "--methods", methods, "--seeds", seeds, "--out", str(folder)]
    for text in overrides:
        words += ["-s", text]
    if jobs != 1:
        words += ["--jobs", str(jobs)]
    for file in files:
        words += ["--with", str(file)]
    begun = (folder / "config.yaml").is_file()
    advice = "stopped; resume with" if begun else "stopped before the first run; start with"
    return f"{advice}: {shlex.join(words)}"


class PlainLines:
    """One line when a run begins, at each of its rounds, and when it ends."""

    def __init__(self, console: Console):
        self.console = console
        self._runs, self._begun = 0, 0
        self._said: dict[str, str] = {}

    def stage(self, text: str) -> None:
        self.console.print(f"[dim]·[/] {shown(text, 1000)}", highlight=False)

    def begins(self, runs: int, after: int = 0) -> None:
        self._runs = self._begun + runs + after

    def run_begins(self, name: str) -> None:
        self._begun += 1
        self.console.print(f"[dim]·[/] run {self._begun} of {self._runs}: {shown(name)}", highlight=False)

    def run_at(self, name: str, share: float, text: str) -> None:
        if text.startswith("round ") and self._said.get(name) != text:
            self.console.print(f"  {shown(name)}: {shown(text)}", highlight=False)
        self._said[name] = text

    def run_ends(self, name: str, problem: str | None) -> None:
        self.console.print(_ended(name, problem), highlight=False)


class LiveBars:
    """A bar over all runs, those to come after tuning too, with the time that is left; under it one for each
    run in progress."""

    def __init__(self, console: Console):
        self.console = console
        self._bars = Bars(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]:<18.18}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._all: TaskID | None = None
        self._runs, self._done = 0, 0
        self._going: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> LiveBars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def stage(self, text: str) -> None:
        self._bars.console.print(f"[dim]·[/] {shown(text, 1000)}", highlight=False)

    def begins(self, runs: int, after: int = 0) -> None:
        self._runs = self._done + runs + after
        if self._all is None:
            self._all = self._bars.add_task("all runs", total=self._runs, text="")
        self._bars.update(self._all, total=self._runs, text=f"{self._done} of {self._runs}")

    def run_begins(self, name: str) -> None:
        task = self._bars.add_task(f"  {shown(_short(name))}", total=1.0, text="")
        self._going[name] = (task, 0.0)

    def run_at(self, name: str, share: float, text: str) -> None:
        task, _ = self._going[name]
        self._going[name] = (task, share)
        self._bars.update(task, completed=share, text=shown(text))
        self._move()

    def run_ends(self, name: str, problem: str | None) -> None:
        self._bars.remove_task(self._going.pop(name)[0])
        self._done += 1
        self._move()
        self._bars.console.print(_ended(name, problem), highlight=False)

    def _move(self) -> None:
        if self._all is not None:
            going = sum(share for _, share in self._going.values())
            self._bars.update(self._all, completed=self._done + going, text=f"{self._done} of {self._runs}")


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _ended(name: str, problem: str | None) -> str:
    if problem is None:
        return f"[green]done[/]    {shown(name)}"
    return f"[yellow]failed[/]  {shown(name)}: {shown(problem, 1000)}"


def show_comparison(comparison: Comparison, console: Console) -> None:
    """The table, what to know about it, and where the page is.

    Raises:
        RunFailed: a run failed.
    """
    document, folder = comparison.document, comparison.folder
    console.print(_table(document))
    files = [f"report   {folder / 'report.html'}", f"numbers  {folder / 'comparison.json'}"]
    say(_remarks(document), console)
    console.print("\n".join(files), highlight=False, markup=False)
    if comparison.failed:
        listed = "\n  ".join(f"{item['run']}: {item['problem']}" for item in comparison.failed)
        raise RunFailed(
            f"not every run was finished; the same command with --out {folder} tries again\n  {listed}"
        )


def _table(document: dict[str, Any]) -> Table:
    """One line per method."""
    unit = " %" if describe(document["metric"]).kind == "share" else ""
    metric = str(document["metric"]).replace("_", " ") + unit
    table = Table(
        title=plural(len(document["runs"]), "run"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", overflow="fold")
    for column in (metric, "difference", "per round", "total", "rate", "●"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in document["summary"].items():
        table.add_row(shown(name), *_cells(document, name, row))
    return table


def _cells(document: dict[str, Any], name: str, row: dict[str, Any]) -> list[str]:
    metric, difference = document["metric"], row["difference"]
    apart = change(metric, difference["mean"], difference["std"]).removesuffix(f"{THIN}points")
    apart += "" if difference["separable"] else f" {APART}"
    return [
        value(metric, row["mean"], row["std"]).removesuffix(f"{THIN}%"),
        "" if name == document["baseline"] else apart,
        human_bytes(row["bytes_per_round"]),
        human_bytes(row["total_bytes"]),
        number(row["learning_rate"]) + (" !" if row["edge"] else ""),
        "●" if name in document["pareto"] else "",
    ]


def _routed(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, row) for name, row in document["summary"].items() if row["routing"] is not None]


def _routing(metric: str, name: str, routing: dict[str, Any]) -> str:
    """One line about a mixture; what is not known is a dash."""
    oracle, static = (show(metric, routing[kind]) for kind in ("oracle", "static"))
    right = percent(routing["right"])
    return f"{name}: {oracle} with each row's own expert, {static} with the experts' mean; right {right}"


def _remarks(document: dict[str, Any]) -> list[str]:
    rows = document["summary"].values()
    remarks = [
        f"mean ± sample sd over seeds; differences are paired, to {document['baseline']}",
        f"{APART} the seeds do not tell the two apart: zero lies in the paired t interval "
        f"({percent(CONFIDENCE, 0)}, corrected for all; none with fewer than {FEWEST_SEEDS} seeds): "
        + what_shows(min(row["seeds"] for row in rows), len(rows) - 1),
        "bytes up and down together: per round for each client; total of all, one-time traffic included",
        "● not dominated: no other method is both better and cheaper",
    ]
    remarks += [_routing(document["metric"], name, row["routing"]) for name, row in _routed(document)]
    if document["privacy"]:
        remarks.append(document["privacy"])
    if any(row["edge"] for row in rows):
        remarks.append(
            "! the rate lies at the edge of its grid: a better one may lie beyond (compare.learning_rates)"
        )
    return remarks
