"""The kinds of plot: curves, bars by round, stacked bars, a grid of states."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import east_asian_width

from fedsb.report.canvas import INK, MARKERS, PAPER, Data, Drawing, Key, Plot, key, series
from fedsb.report.units import human_bytes, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_WRITTEN = 64
"""Cells of a heat map with their number in them."""
MOST_BESIDE = 50
"""Letters of names below an axis, wide ones twice; with more they are slanted."""
Box = tuple[float, float, float, float]  # left, bottom, width, height
Show = Callable[[float], str]


class Curve(NamedTuple):
    """`group` picks colour and marker; curves of one group share a line of the legend."""

    label: str
    points: Sequence[tuple[float, float]]
    group: int = 0


class Band(NamedTuple):
    """A faint area around the curve of its group: (x, low, high)."""

    points: Sequence[tuple[float, float, float]]
    group: int = 0


class Layer(NamedTuple):
    """Boxes of one colour. `crossed` ones get an x, so that colour is not the only sign."""

    key: Key
    colour: str
    boxes: Sequence[Box]
    crossed: bool = False


class Span(NamedTuple):
    """Limits and names of the axes; `show_x` None stands for whole numbers such as rounds."""

    x_title: str
    y_title: str
    show_y: Show
    tick_y: Show | None = None  # None: as show_y
    show_x: Show | None = None
    zero: bool = False


def curves(
    title: str, items: Iterable[Curve], span: Span, *, name: str, note: str = "", bands: Sequence[Band] = ()
) -> Plot | None:
    """Curves over a common x axis; None without a finite point. The ends of a lone curve get their value."""
    drawn = [item._replace(points=finite) for item in items if (finite := _finite(item.points))]
    if not drawn:
        return None

    edges = [Curve("", [(x, y) for x, low, high in band.points for y in (low, high)]) for band in bands]

    def paint(axes: "Axes") -> None:
        for band in bands:
            x, low, high = zip(*band.points, strict=True)
            axes.fill_between(x, low, high, color=series(band.group), alpha=0.16, linewidth=0)
        for item in drawn:
            _line(axes, item, slim=len(drawn) > 6)
        _frame(axes, [*drawn, *edges], span)
        if len(drawn) == 1:
            _ends(axes, drawn[0], span.show_y)

    keys = {item.label: key(item.group, item.label) for item in drawn} if len(drawn) > 1 else {}
    alt = f"Line plot, {title}. " + " ".join(_say(item, span) for item in drawn[:12])
    drawing, data = Drawing(paint, name, y_title=span.y_title), _points(title, drawn, bands, span)
    return Plot(title, drawing, alt, data, tuple(keys.values()), note)


def _points(title: str, items: Sequence[Curve], bands: Sequence[Band], span: Span) -> Data:
    """Every point of the curves, with the ends of its band where it has one."""
    ends = {(band.group, x): (low, high) for band in bands for x, low, high in band.points}
    rows = [[item.label, x, y, *ends.get((item.group, x), ())] for item in items for x, y in item.points]
    return Data(["curve", span.x_title, title, *(("low", "high") if ends else ())], rows)


def layers(
    title: str,
    items: Sequence[Layer],
    *,
    name: str,
    alt: str,
    data: Data,
    frame: "Callable[[Axes], None]",
    y_title: str = "",
) -> Plot:
    """Boxes by colour: bars, stacked bars, grids. `frame` sets limits and ticks."""

    def paint(axes: "Axes") -> None:
        for item in items:
            _boxes(axes, item)
        frame(axes)

    drawing = Drawing(paint, name, y_title=y_title)
    return Plot(title, drawing, alt, data, tuple(item.key for item in items))


def bytes_by_round(rounds: Sequence[int], up: Sequence[int], down: Sequence[int], *, name: str) -> Plot:
    sent = [(n - 0.4, 0.0, 0.8, float(v)) for n, v in zip(rounds, up, strict=True)]
    received = [(left, high, width, float(v)) for (left, _, width, high), v in zip(sent, down, strict=True)]
    items = [
        Layer(key(0, "up, clients to server", "■"), series(0), sent),
        Layer(key(1, "down, server to clients", "■"), series(1), received),
    ]
    most = max(1.0, *(low + size for _, low, _, size in received))

    def frame(axes: "Axes") -> None:
        axes.set(xlim=(min(rounds) - 0.6, max(rounds) + 0.6), ylim=(0, 1.08 * most), xlabel="round")
        ticks(axes, human_bytes)

    title, done = "Traffic of each round", plural(len(rounds), "round")
    alt = f"Stacked bars, {title}: up {human_bytes(sum(up))} and down {human_bytes(sum(down))} in {done}."
    data = Data(["round", "up, bytes", "down, bytes"], list(zip(rounds, up, down, strict=True)))
    return layers(title, items, name=name, alt=alt, data=data, frame=frame, y_title="sent in the round")


def stacked(
    title: str, bars: Sequence[str], parts: Sequence[tuple[str, Sequence[int]]], *, name: str
) -> Plot:
    """One bar per client, split into named parts."""
    below, items = [0] * len(bars), []
    for at, (label, sizes) in enumerate(parts):
        boxes = [(n - 0.4, below[n], 0.8, size) for n, size in enumerate(sizes) if size]
        items.append(Layer(key(at, label, "■"), series(at), boxes))
        below = [low + size for low, size in zip(below, sizes, strict=True)]

    def frame(axes: "Axes") -> None:
        axes.set(xlim=(-0.6, len(bars) - 0.4), ylim=(0, 1.08 * max(1, *below)), xlabel="client")
        ticks(axes, lambda value: f"{value:,.0f}")
        _named(axes.xaxis, bars)
        _slant(axes)

    said = "; ".join(
        f"{f'client {bar}' if bar.isdecimal() else bar}: {size:,}"
        for bar, size in zip(bars[:20], below, strict=False)
    )
    data = Data(
        ["client", *(label for label, _ in parts)],
        list(zip(bars, *(sizes for _, sizes in parts), strict=True)),
    )
    alt = f"Bar plot, {title}. {said}."
    plot = layers(title, items, name=name, alt=alt, data=data, frame=frame, y_title="examples")
    return plot if len(parts) > 1 else plot._replace(keys=())


def grid(
    title: str, rows: Sequence[str], rounds: Sequence[int], items: Sequence[Layer], *, name: str
) -> Plot:
    """Clients down, rounds across; a box covers the cell (round, row)."""

    def frame(axes: "Axes") -> None:
        axes.set(xlim=(min(rounds) - 0.6, max(rounds) + 0.6), ylim=(len(rows) - 0.4, -0.6))
        axes.set(xlabel="round", ylabel="client")
        axes.grid(visible=False)
        _whole(axes.xaxis)
        _named(axes.yaxis, rows)

    says = ", ".join(f"{len(item.boxes)} times {item.key.name}" for item in items)
    alt = f"Grid, {title}: {plural(len(rows), 'client')} by {plural(len(rounds), 'round')}; {says}."
    states = [
        [item.key.name, round(x + w / 2), rows[round(y + h / 2)]]
        for item in items
        for x, y, w, h in item.boxes
    ]
    data = Data(["state", "round", "client"], states)
    return layers(title, items, name=name, alt=alt, data=data, frame=frame)


class Ticks(NamedTuple):
    """An axis of a heat map: its name, and names at places along it."""

    title: str
    names: Sequence[str]
    places: Sequence[float] | None = None  # None: one for each row or column


def heat(title: str, down: Ticks, across: Ticks, shares: Sequence[Sequence[float]], *, name: str) -> Plot:
    """Shares from 0 to 1, row by row, by the depth of one colour; written out where there is room."""
    cells = [(column, row, share) for row, line in enumerate(shares) for column, share in enumerate(line)]

    def paint(axes: "Axes") -> None:
        for column, row, share in cells:
            _shade(axes, cell(column, row, 0.02), share)
            if len(cells) <= MOST_WRITTEN:
                axes.text(column, row, percent(share, 0), ha="center", va="center", color=INK)
        axes.set(xlim=(-0.6, len(shares[0]) - 0.4), ylim=(len(shares) - 0.4, -0.6))
        axes.set(xlabel=across.title, ylabel=down.title)
        axes.grid(visible=False)
        _place(axes.xaxis, across, 10)
        _slant(axes)
        _place(axes.yaxis, down, 10)

    said = "; ".join(" ".join(percent(share, 0) for share in line) for line in shares[:20])
    columns = [f"{down.title}, row", *(f"{across.title} {n}" for n in range(len(shares[0])))]
    data = Data(columns, [[name, *line] for name, line in zip(down.names, shares, strict=True)])
    return Plot(title, Drawing(paint, name), f"Heat map, {title}, row by row: {said}.", data)


def _shade(axes: "Axes", box: Box, share: float) -> None:
    from matplotlib.patches import Rectangle

    left, low, width, height = box
    depth = 0.06 + 0.64 * min(max(share, 0.0), 1.0)  # text is readable on the deepest
    axes.add_patch(Rectangle((left, low), width, height, facecolor=series(0), alpha=depth, linewidth=0))


def _place(axis: object, ticks: Ticks, length: int, most: int = 12) -> None:
    places = range(len(ticks.names)) if ticks.places is None else ticks.places
    pairs = list(zip(places, ticks.names, strict=True))[:: -(-len(ticks.names) // most)]
    axis.set_ticks([at for at, _ in pairs], [_cut(name, length) for _, name in pairs])  # type: ignore[attr-defined]


def cell(column: float, row: float, gap: float = 0.06) -> Box:
    return (column - 0.5 + gap, row - 0.5 + gap, 1 - 2 * gap, 1 - 2 * gap)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _line(axes: "Axes", item: Curve, *, slim: bool) -> None:
    x, y = zip(*item.points, strict=True)
    marker = MARKERS[item.group % len(MARKERS)] if len(x) <= 40 else ""
    colour = series(item.group)
    width, size = (1.2, 5.0) if slim else (2.0, 6.5)
    (line,) = axes.plot(x, y, color=colour, marker=marker, linewidth=width, markersize=size, clip_on=False)
    line.set(markeredgecolor=PAPER, markeredgewidth=0.8)


def _ends(axes: "Axes", item: Curve, show: Show) -> None:
    """Write the first and the last value next to their points, on the side away from the curve."""
    if len(item.points) == 1:
        return _write(axes, item.points[0], show(item.points[0][1]), 8, "center")
    bottom, top = axes.get_ylim()
    low = bottom + 0.15 * (top - bottom) if bottom == 0 else -math.inf  # no room below, but for the axis
    ends = ((item.points[0], item.points[1], "left"), (item.points[-1], item.points[-2], "right"))
    for end, beside, side in ends:
        below = beside[1] > end[1] or (beside[1] == end[1] and side == "left")
        if end[1] > low or not below:
            _write(axes, end, show(end[1]), -15 if below else 8, side)
        elif side == "right":
            _write(axes, end, show(end[1]), 8, side)


def _write(axes: "Axes", point: tuple[float, float], text: str, shift: float, side: str) -> None:
    nudge = {"left": -4, "right": 4}.get(side, 0)
    place = {"xytext": (nudge, shift), "textcoords": "offset points", "ha": side, "annotation_clip": False}
    axes.annotate(text, point, color=INK, **place).set_in_layout(False)  # type: ignore[arg-type]


def _frame(axes: "Axes", items: Sequence[Curve], span: Span) -> None:
    x, y = zip(*(point for item in items for point in item.points), strict=True)
    axes.set_xlabel(span.x_title)
    axes.set_ylim(*limits(min(y), max(y), zero=span.zero))
    ticks(axes, span.tick_y or span.show_y, span.show_x)
    if span.show_x is None:
        pad = 0.04 * (max(x) - min(x)) or 0.5
        axes.set_xlim(min(x) - pad, max(x) + pad)
    elif min(x) > 0 and max(x) > 20 * min(x):
        _log(axes, min(x), max(x), span.show_x)


def limits(low: float, high: float, *, zero: bool = False) -> tuple[float, float]:
    """Room above and below; zero is the bottom if asked for, or if showing it costs little."""
    if low >= 0 and (zero or low < 0.4 * high):
        return 0.0, 1.15 * high or 1.0
    pad = 0.18 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _log(axes: "Axes", low: float, high: float, show: Show) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1000 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def ticks(axes: "Axes", show_y: Show, show_x: Show | None = None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show_y(value)))
    if show_x is None:
        _whole(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_x(value)))


def _whole(axis: object) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))  # type: ignore[attr-defined]


def _named(axis: object, names: Sequence[str], most: int = 12) -> None:
    """Tick names, thinned out to `most`, long ones cut."""
    step = -(-len(names) // most)
    at = range(0, len(names), max(1, step))
    axis.set_ticks(list(at), [_cut(names[n]) for n in at])  # type: ignore[attr-defined]


def _slant(axes: "Axes") -> None:
    """Turn the names below the axis where they have no room beside each other."""
    names = axes.get_xticklabels()
    widths = (sum(1 + (east_asian_width(c) in "WF") for c in name.get_text()) for name in names)
    if len(names) * max(widths, default=0) > MOST_BESIDE:
        for name in names:
            name.set(rotation=35, ha="right", rotation_mode="anchor")


def _cut(name: str, most: int = 10) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _boxes(axes: "Axes", item: Layer) -> None:
    """All boxes as one path: a page with a thousand cells stays small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not item.boxes:
        return
    corners = [
        c for x, y, w, h in item.boxes for c in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))
    ]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(item.boxes)
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=item.colour, edgecolor=PAPER, linewidth=0.6))
    if item.crossed:
        _cross(axes, item.boxes)


def _cross(axes: "Axes", boxes: Sequence[Box]) -> None:
    """An x in each box, in data units, so that it shrinks with the box."""
    for x, y, w, h in boxes:
        left, right, low, high = x + 0.4 * w, x + 0.6 * w, y + 0.3 * h, y + 0.7 * h
        across, up = [left, right, math.nan, left, right], [low, high, math.nan, high, low]
        axes.plot(across, up, color=PAPER, linewidth=1.6)


def _say(item: Curve, span: Span) -> str:
    show_x = span.show_x or (lambda value: f"{span.x_title} {value:.0f}")
    (x0, y0), (x1, y1) = item.points[0], item.points[-1]
    start = f"{item.label}: {span.show_y(y0)} at {show_x(x0)}"
    return f"{start}." if len(item.points) == 1 else f"{start}, {span.show_y(y1)} at {show_x(x1)}."
