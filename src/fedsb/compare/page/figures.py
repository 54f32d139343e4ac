"""The plots of a comparison."""

from statistics import mean, stdev
from typing import Any

from fedsb.compare.page.front import Dot, front
from fedsb.compare.page.load import Compared
from fedsb.report import facts
from fedsb.report.canvas import Plot
from fedsb.report.load import number
from fedsb.report.markup import joined, plots, wide
from fedsb.report.metrics import describe, show, show_tick
from fedsb.report.plots import Band, Curve, Span, curves

MOST_BANDS = 4


def figures(found: Compared) -> str:
    by_bytes, by_round = _by_bytes(found), _by_round(found)
    return joined(wide(plots([by_bytes])) if by_bytes else "", plots([by_round]) if by_round else "")


def _by_bytes(found: Compared) -> Plot | None:
    dots = [_dot(found, name, row) for name, row in found.summary.items()]
    note = (
        "Further left is cheaper. Large points are means over the seeds, bars one standard deviation, faint "
        "points the seeds. The line joins what no other method beats in both."
    )
    title = f"{describe(found.metric).title} by traffic"
    return front(title, dots, _show(found.metric), _tick(found.metric), name="comparison-bytes", note=note)


def _dot(found: Compared, name: str, row: dict[str, Any]) -> Dot:
    pairs_ = [(number(run.get("total_bytes")), number(run.get("value"))) for run in found.of(name)]
    seeds = [(x, y) for x, y in pairs_ if x and y is not None] if len(pairs_) > 1 else []
    middle, cost = number(row.get("mean")), number(row.get("total_bytes"))
    quality = float("nan") if middle is None else middle
    return Dot(name, cost or 0.0, quality, number(row.get("std")), seeds, name in found.best)


def _show(metric: str) -> Any:
    return lambda value: show(metric, value)


def _tick(metric: str) -> Any:
    return lambda value: show_tick(metric, value)


def _by_round(found: Compared) -> Plot | None:
    """Means over the seeds; the deviation as a band while there are few methods."""
    names = list(found.summary)
    each = {name: _means(found, name) for name in names}
    first = 0 if all(len(points) < 3 for points in each.values()) else 1
    items = [Curve(n, [(x, m) for x, m, _ in each[n] if x >= first], at) for at, n in enumerate(names)]
    banded = len(names) <= MOST_BANDS
    bands = [
        Band([(x, m - s, m + s) for x, m, s in each[n] if x >= first and s is not None], at)
        for at, n in enumerate(names)
    ]
    note = "Means over the seeds; bands are one standard deviation." if banded else "Means over the seeds."
    base = _base(found)
    if first and base is not None:
        note += f" Round 0, the model before any training, is not drawn: {show(found.round_metric, base)}."
    span = Span("round", _show(found.round_metric), _tick(found.round_metric))
    shown = [band for band in bands if band.points] if banded else []
    title = f"{describe(found.round_metric).title} by round"
    return curves(title, items, span, name="comparison-rounds", note=note, bands=shown)


def _means(found: Compared, name: str) -> list[tuple[float, float, float | None]]:
    """(round, mean, deviation) over the rounds that every seed's run has."""
    lines = [dict(facts.curve(run, found.round_metric)) for run in found.folders(name)]
    common = sorted(set.intersection(*map(set, lines))) if lines else []
    values = {at: [line[at] for line in lines] for at in common}
    return [(at, mean(v), stdev(v) if len(v) > 1 else None) for at, v in values.items()]


def _base(found: Compared) -> float | None:
    values = [b for run in found.runs if (b := number(run.get("base"))) is not None]
    return mean(values) if values else None
