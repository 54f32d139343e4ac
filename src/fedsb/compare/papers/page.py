"""The page of a reproduced table, and what is said of its figures everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsb.common.files import write_text
from fedsb.report.markup import (
    details,
    document,
    header,
    joined,
    link,
    numbers,
    paragraph,
    section,
    table,
    texts,
)
from fedsb.report.units import DASH, MINUS, plural


def number(value: float | None, *, sign: bool = False) -> str:
    """A cell with two decimals, as the papers print them; a dash where nothing is known."""
    if value is None:
        return DASH
    return f"{value:{'+' if sign else ''}.2f}".replace("-", MINUS)


def source_of(found: Mapping[str, Any]) -> str:
    """Where the paper's numbers are printed."""
    source = found["source"]
    return f"{source['authors']} {source['year']}, arXiv {source['arxiv']}: {source['table']}"


def notices(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know before setting ours beside the paper's."""
    note = [found["note"]] if found["note"] else []
    if found["made"]:
        return [
            "Not comparable with the paper: this is the small form of the table, on rows and a model that "
            "fedsb made itself. It shows that every arm runs and what the page looks like. Name a model and "
            "data of your own with --model and --data.",
            *note,
        ]
    if found["reduced"]:
        return [
            "Not comparable with the paper: this is the small form of the table, with another model, fewer "
            "rows, smaller ranks and rates of its own. At most the order of the methods says something, and "
            "with few seeds not that.",
            *note,
        ]
    said = "Comparable as far as the paper's settings are known. Not known, or not offered here"
    return [f"{said}: {found['unknown']}"]


def lines(found: Mapping[str, Any]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(method, rank, column, cell) of every cell that was run, row by row."""
    return [
        (row["method"], rank_of(row), column, cell)
        for row in found["rows"]
        for column, cell in zip(found["columns"], row["cells"], strict=True)
        if cell["ours"] is not None
    ]


def rank_of(row: Mapping[str, Any]) -> str:
    """The paper's rank, and in brackets ours where it is another one."""
    theirs, ours = row["rank"], row["rank_here"]
    paper = DASH if theirs is None else str(theirs)
    return paper if ours in (None, theirs) else f"{paper} ({ours})"


def write_page(folder: Path, found: Mapping[str, Any]) -> None:
    """report.html in the folder, with links to the comparisons that it is made of."""
    parts = [link(part, f"{part}/report.html") for part in found["parts"]]
    kind = "small form" if found["reduced"] else "whole table"
    ran = [
        place
        for place in range(len(found["columns"]))
        if any(row["cells"][place]["ours"] is not None for row in found["rows"])
    ]
    body = joined(
        header(
            f"fedsb reproduce {found['table']} · {kind}",
            found["title"],
            f"The paper's numbers are from {source_of(found)}. Ours are means over "
            f"{plural(len(found['seeds']), 'seed')}.{_of_ranks(found)}",
            [],
        ),
        *(paragraph(text, "notice") for text in notices(found)),
        *(section(f"column-{place}", 2, _titled(found, place), _column(found, place)) for place in ran),
        *_not_run(found, [place for place in range(len(found["columns"])) if place not in ran]),
        section(
            "settings",
            2,
            "Settings",
            paragraph(f"Known: {found['known']}"),
            paragraph(f"Unknown: {found['unknown']}"),
        ),
        section("runs", 2, "The comparisons behind it", *(paragraph(part) for part in parts)),
    )
    write_text(folder / "report.html", document(found["title"], body))


def _of_ranks(found: Mapping[str, Any]) -> str:
    differ = any(row["rank_here"] not in (None, row["rank"]) for row in found["rows"])
    return " Of ranks the paper's come first, ours in brackets." if differ else ""


def _titled(found: Mapping[str, Any], place: int) -> str:
    """`epsilon 3: accuracy, %`."""
    name, unit = found["columns"][place], found["units"][place]
    return f"{name}: {unit}" if unit else str(name)


def _not_run(found: Mapping[str, Any], places: Sequence[int]) -> list[str]:
    """The paper's other columns, folded."""
    folded = [details(_titled(found, place), _column(found, place)) for place in places]
    return [section("not-run", 2, "Not run here", *folded)] if folded else []


def _column(found: Mapping[str, Any], place: int) -> str:
    columns = texts("method") + numbers("rank", "paper", "ours", "sd", "difference")
    return table(found["columns"][place], columns, _rows(found["rows"], place))


def _rows(rows: Sequence[Mapping[str, Any]], place: int) -> list[list[str]]:
    made = []
    for row in rows:
        cell = row["cells"][place]
        values = [number(cell[key]) for key in ("paper", "ours", "std")]
        made.append([row["method"], rank_of(row), *values, number(cell["difference"], sign=True)])
    return made
