"""The plots of a comparison."""

from functools import partial
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


def plots_of(comparison: Compared) -> list[Plot]:
    """Score by traffic, score by round; fewer where there is nothing to draw."""
    return [plot for plot in (_by_bytes(comparison), _by_round(comparison)) if plot]


def figures(comparison: Compared) -> str:
    by_bytes, by_round = _by_bytes(comparison), _by_round(comparison)
    return joined(wide(plots([by_bytes])) if by_bytes else "", plots([by_round]) if by_round else "")


def _by_bytes(comparison: Compared) -> Plot | None:
    dots = [_dot(comparison, name, row) for name, row in comparison.summary.items()]
    note = (
        "Further left is cheaper. Large points are means over the seeds, bars one standard deviation, hollow "
        "ones the seeds. The line joins what no other method beats in both."
    )
    metric = comparison.metric
    title, tick = f"{describe(metric).title} by traffic", partial(show_tick, metric)
    return front(title, dots, partial(show, metric), tick, name="comparison-bytes", note=note)


def _dot(comparison: Compared, name: str, row: dict[str, Any]) -> Dot:
    points = [(number(run.get("total_bytes")), number(run.get("value"))) for run in comparison.of(name)]
    seeds = [(x, y) for x, y in points if x and y is not None] if len(points) > 1 else []
    middle, cost = number(row.get("mean")), number(row.get("total_bytes"))
    quality = float("nan") if middle is None else middle
    return Dot(name, cost or 0.0, quality, number(row.get("std")), seeds, name in comparison.best)


def _by_round(comparison: Compared) -> Plot | None:
    """Means over the seeds; the deviation as a band while there are few methods."""
    names, metric = list(comparison.summary), comparison.round_metric
    each = {name: _means(comparison, name) for name in names}
    first = 0 if all(len(points) < 3 for points in each.values()) else 1
    items = [Curve(n, [(x, m) for x, m, _ in each[n] if x >= first], at) for at, n in enumerate(names)]
    banded = len(names) <= MOST_BANDS
    bands = [
        Band([(x, m - s, m + s) for x, m, s in each[n] if x >= first and s is not None], at)
        for at, n in enumerate(names)
    ]
    note = "Means over the seeds; bands are one standard deviation." if banded else "Means over the seeds."
    base = _base(comparison)
    if first and base is not None:
        note += f" Round 0, the model before any training, is not drawn: {show(metric, base)}."
    span = Span("round", describe(metric).title, partial(show, metric), partial(show_tick, metric))
    shown = [band for band in bands if band.points] if banded else []
    title = f"{describe(metric).title} by round"
    return curves(title, items, span, name="comparison-rounds", note=note, bands=shown)


def _means(comparison: Compared, name: str) -> list[tuple[float, float, float | None]]:
    """(round, mean, deviation) over the rounds that every seed's run has."""
    lines = [dict(facts.curve(run, comparison.round_metric)) for run in comparison.folders(name)]
    common = sorted(set.intersection(*map(set, lines))) if lines else []
    values = {at: [line[at] for line in lines] for at in common}
    return [(at, mean(v), stdev(v) if len(v) > 1 else None) for at, v in values.items()]


def _base(comparison: Compared) -> float | None:
    values = [b for run in comparison.runs if (b := number(run.get("base"))) is not None]
    return mean(values) if values else None
