"""The plots and tables of a page as files of their own, for a paper: pdf, svg, png, csv, LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fedsb.common.files import write_bytes
from fedsb.errors import InputError
from fedsb.report.canvas import Data, Plot
from fedsb.report.latex import tabular

DRAWN = ("pdf", "svg", "png")
KINDS = (*DRAWN, "csv", "latex")


def kinds_of(text: str) -> tuple[str, ...]:
    """The formats of a list such as `pdf,csv`.

    Raises:
        InputError: one of them is unknown, or there is none.
    """
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--format: expected some of {', '.join(KINDS)}, with commas, found {wrong[0]!r}")
    if not kinds:
        raise InputError(f"--format: expected some of {', '.join(KINDS)}, with commas, found nothing")
    return kinds


def write_files(plots: Sequence[Plot], html: str, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write each plot, and each table of the HTML, under its title; a plot's csv has the numbers behind it.

    Raises:
        InputError: the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--figures: expected a folder, found the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for stem, plot in _named([(plot.title, plot) for plot in plots]):
        for kind in kinds:
            if kind in DRAWN:
                written.append(folder / f"{stem}.{kind}")
                plot.save(written[-1], kind)
        written += _write_data(folder / stem, plot.data, [kind for kind in kinds if kind == "csv"])
    for stem, table in _named([(f"table {title}", table) for title, table in tables_of(html)]):
        written += _write_data(folder / stem, table, kinds)
    return written


def _named(items: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(file name without its ending, item), each name once."""
    taken: dict[str, int] = {}
    for title, item in items:
        stem = re.sub(r"\W+", "-", title.lower()).strip("-") or "figure"
        taken[stem] = taken.get(stem, 0) + 1
        yield stem if taken[stem] == 1 else f"{stem}-{taken[stem]}", item


def _write_data(stem: Path, data: Data, kinds: Sequence[str]) -> list[Path]:
    texts = {"csv": (".csv", _csv), "latex": (".tex", tabular)}
    files = [(stem.with_name(stem.name + texts[kind][0]), texts[kind][1]) for kind in kinds if kind in texts]
    for file, text_of in files:
        write_bytes(file, text_of(data).encode())
    return [file for file, _ in files]


def _csv(data: Data) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([data.columns, *data.rows])
    return text.getvalue()


def tables_of(html: str) -> list[tuple[str, Data]]:
    """(title, cells as texts) of each table of a page's HTML."""
    reader = _Tables()
    reader.feed(html)
    return [
        (table.title, Data(table.rows[0], table.rows[1:], tuple(table.right), table.total))
        for table in reader.tables
        if len(table.rows) > 1
    ]


@dataclass
class _Table:
    title: str
    rows: list[list[str]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    total: bool = False


class _Tables(HTMLParser):
    """Reads what the macro `table` of parts.html writes."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[_Table] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("class")
        if tag == "div" and kind == "scroll":
            self.tables.append(_Table(dict(attrs).get("aria-label") or ""))
        elif tag in ("tr", "th", "td") and self.tables:
            self._begin(self.tables[-1], tag, kind)

    def _begin(self, table: _Table, tag: str, kind: str | None) -> None:
        if tag == "tr":
            table.rows.append([])
            table.total = kind == "total"
            return
        if len(table.rows) == 1:
            table.right.append(kind == "number")
        table.rows[-1].append("")
        self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            row = self.tables[-1].rows[-1]
            row[-1] = f"{row[-1]}{data}".strip("\n")
