"""A run on the terminal: bars where someone watches, plain lines where the output goes to a file or pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fedsb.common.printable import site_name
from fedsb.report.screen import shown
from fedsb.report.units import four_places, human_bytes

LONGEST_STAGE = 1000
"""Characters of a line about what comes next."""
LONGEST_BAR = 16
"""Characters of a site's name beside its bar."""


class PlainLines:
    """One line per event worth a line."""

    def __init__(self, console: Console):
        self.console = console
        self.rounds = 0
        self.names: Sequence[str] = ()
        self._seen = 0
        self._began = 0.0

    def sites(self, names: Sequence[str]) -> None:
        self.names = names

    def stage(self, text: str) -> None:
        self.console.print(f"[dim]·[/] {shown(text, LONGEST_STAGE)}", highlight=False)

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        self.rounds = rounds

    def client_begins(self, client: int, num_examples: int) -> None:
        self._seen, self._began = 0, time.monotonic()

    def step(self, num_examples: int) -> None:
        self._seen += num_examples

    def client_ends(self, client: int, problem: str | None) -> None:
        if problem:
            self.console.print(_left_out(self.names, client, problem), highlight=False)
            return
        speed = self._seen / max(time.monotonic() - self._began, 1e-9)
        seen = f"{self._seen} examples, {speed:.0f}/s" if self._seen else "done"
        self.console.print(f"  {shown(site_name(self.names, client))}: {seen}", highlight=False)

    def evaluating(self, done: int, total: int) -> None: ...

    def round_ends(self, record: dict[str, Any]) -> None:
        self.console.print(round_line(record, self.rounds), highlight=False)


class _Count(MofNCompleteColumn):
    """Nothing where the end is not known."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text("")


class _Time(TimeRemainingColumn):
    """Time left; where the end is not known, time spent."""

    def render(self, task: Task) -> Text:
        if task.total is not None:
            return super().render(task)
        minutes, seconds = divmod(int(task.elapsed or 0), 60)
        return Text(f"{minutes:02d}:{seconds:02d}", style="progress.elapsed")


class LiveBars:
    """Two bars: the clients of the round, the examples of the client, with speed and time left.

    Before the rounds there is one bar that moves while a stage lasts. All of it fits 80 columns.
    """

    def __init__(self, console: Console):
        self.console = console
        self.rounds = 0
        self.names: Sequence[str] = ()
        self._bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            _Count(),
            TextColumn("{task.fields[speed]:>12}"),
            _Time(compact=True),
            console=console,
            transient=True,
        )
        self._round: TaskID | None = None
        self._work: TaskID | None = None
        self._examples, self._ended = 1, 0

    def __enter__(self) -> LiveBars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def sites(self, names: Sequence[str]) -> None:
        self.names = names

    def stage(self, text: str) -> None:
        self._clear()
        self.console.print(f"[dim]·[/] {shown(text, LONGEST_STAGE)}", highlight=False)
        self._replace_work("", None)

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        self._clear()
        self.rounds, self._ended = rounds, 0
        self._round = self._bars.add_task(f"round {number} of {rounds}", total=len(cohort), speed="clients")

    def client_begins(self, client: int, num_examples: int) -> None:
        self._examples = max(1, num_examples)
        self._replace_work(f"  {shown(site_name(self.names, client), LONGEST_BAR)}", num_examples)

    def step(self, num_examples: int) -> None:
        if self._work is not None:
            self._bars.advance(self._work, num_examples)
            self._show_speed()
        if self._round is not None:  # a part of a client, so that the time left is known early
            self._bars.advance(self._round, num_examples / self._examples)

    def client_ends(self, client: int, problem: str | None) -> None:
        if problem:
            self.console.print(_left_out(self.names, client, problem), highlight=False)
        self._ended += 1
        if self._round is not None:
            self._bars.update(self._round, completed=self._ended)

    def evaluating(self, done: int, total: int) -> None:
        if self._work is None or self._bars.tasks[-1].description != "  evaluation":
            self._replace_work("  evaluation", total)
        if self._work is not None:
            self._bars.update(self._work, completed=done)
            self._show_speed()

    def round_ends(self, record: dict[str, Any]) -> None:
        self._clear()
        line = round_line(record, self.rounds, width=self.console.width)
        self.console.print(line, highlight=False)

    def _replace_work(self, text: str, total: int | None) -> None:
        if self._work is not None:
            self._bars.remove_task(self._work)
        self._work = self._bars.add_task(text, total=total, speed="")

    def _show_speed(self) -> None:
        task = next(task for task in self._bars.tasks if task.id == self._work)
        if task.speed:
            self._bars.update(task.id, speed=f"{task.speed:.0f} ex/s")

    def _clear(self) -> None:
        for task in (self._work, self._round):
            if task is not None:
                self._bars.remove_task(task)
        self._work = self._round = None


def _left_out(names: Sequence[str], client: int, problem: str) -> str:
    return f"[yellow]{shown(site_name(names, client))} left out:[/] {shown(problem)}"


def round_line(record: dict[str, Any], rounds: int, *, width: int | None = None) -> str:
    """`round 2 of 5  accuracy 0.912  loss 0.31  train loss 0.40  up 600 kB  5 clients  4.1 s`.

    Where that is wider than `width`, the metrics between the first and the last go, then the clients.
    """
    metrics = {shown(name.replace("_", " ")): value for name, value in record["eval"].items()}
    scores = [f"{name} {four_places(value) or 'not finite'}" for name, value in metrics.items()]
    forms = [_round_parts(record, rounds, scores)]
    forms += [_round_parts(record, rounds, [scores[0], *scores[k:]]) for k in range(2, len(scores))]
    forms.append([part for part in forms[-1] if not part.endswith(" clients")])
    lines = ["  ".join(parts) for parts in forms]
    fits = (line for line in lines if width is None or Text.from_markup(line).cell_len <= width)
    return next(fits, lines[-1])


def _round_parts(record: dict[str, Any], rounds: int, scores: Sequence[str]) -> list[str]:
    name = "base model" if record["round"] == 0 else f"round {record['round']} of {rounds}"
    parts = [f"[bold]{name:<12}[/]", *scores]
    if record["train_loss"] is not None:
        parts.append(f"train loss {record['train_loss']:.4f}")
    if record["clients"]:
        parts += [f"up {human_bytes(record['upload_bytes'])}", f"{len(record['clients'])} clients"]
    if record["rejected"]:
        parts.append(f"[yellow]{len(record['rejected'])} left out[/]")
    return [*parts, f"{record['seconds']:.1f} s"]
