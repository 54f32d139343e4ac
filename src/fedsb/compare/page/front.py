"""Quality against cost: a point per method, a step line through the non-dominated ones."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedsb.compare.page.labels import Box, Spot, place
from fedsb.report.canvas import FAINT, INK, MARKERS, MUTED, PAPER, Data, Drawing, Plot, key, series
from fedsb.report.plots import Show, limits, ticks
from fedsb.report.units import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 540.0, 350.0
MOST_LETTERS = 26
STEPS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    tuple(n / 4 for n in range(4, 40)),
)
"""Where ticks may stand within each decade, from few to many."""


class Dot(NamedTuple):
    """One method: mean cost in bytes, mean quality, its deviation if known, each seed's (cost, quality)."""

    label: str
    cost: float
    quality: float
    spread: float | None
    seeds: Sequence[tuple[float, float]]
    best: bool  # not dominated


def front(title: str, dots: Sequence[Dot], show: Show, tick: Show, *, name: str, note: str) -> Plot | None:
    """The plot, costs on a logarithmic axis; None without a point. `best` dots are joined by rising cost."""
    drawn = [dot for dot in dots if dot.cost > 0 and math.isfinite(dot.quality)]
    if not drawn:
        return None

    def paint(axes: "Axes") -> None:
        _frame(axes, drawn, tick)
        _steps(axes, drawn)
        for at, dot in enumerate(dots):
            if dot in drawn:
                _dot(axes, dot, at)
        _names(axes, drawn)

    keys = tuple(key(at, dot.label) for at, dot in enumerate(dots) if dot in drawn)
    places = " ".join(
        f"{d.label}: {show(d.quality)} at {human_bytes(d.cost)}{', not dominated' if d.best else ''}."
        for d in drawn
    )
    drawing, alt = (
        Drawing(paint, name, WIDTH, HEIGHT, title.partition(" by ")[0]),
        f"Scatter plot, {title}. {places}",
    )
    return Plot(title, drawing, alt, _numbers(title, drawn), keys if len(drawn) > 1 else (), note)


def _numbers(title: str, dots: Sequence[Dot]) -> Data:
    columns = ["method", "bytes", title, "standard deviation", "not dominated"]
    return Data(columns, [[d.label, d.cost, d.quality, d.spread, d.best] for d in dots])


def _frame(axes: "Axes", dots: Sequence[Dot], tick: Show) -> None:
    cost = [x for dot in dots for x in (dot.cost, *(x for x, _ in dot.seeds)) if x > 0]
    quality = [y for dot in dots for y in _heights(dot)]
    low, high = min(cost), max(cost)
    room = max(1.35, (high / low) ** 0.12)
    axes.set_xscale("log")
    axes.set(xlim=(low / room, high * room), ylim=limits(min(quality), max(quality)))
    axes.set_xlabel("sent in the whole run, up and down, all clients, one-time traffic included")
    ticks(axes, tick)
    at = log_ticks(low / room, high * room)
    axes.set_xticks(at, [human_bytes(value) for value in at])
    axes.set_xticks([], minor=True)


def _heights(dot: Dot) -> list[float]:
    spread = dot.spread or 0.0
    return [dot.quality - spread, dot.quality + spread, *(y for _, y in dot.seeds if math.isfinite(y))]


def log_ticks(low: float, high: float, least: int = 3, most: int = 7) -> list[float]:
    """Round numbers on a logarithmic axis: the coarsest steps that give enough, thinned if too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for steps in STEPS:
        values = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(values) >= least:
            break
    return values[:: -(-len(values) // most)] if values else [low, high]


def _corners(dots: Sequence[Dot], end: float) -> list[tuple[float, float]]:
    """What the least cost buys: level until the next non-dominated point."""
    best = sorted((dot.cost, dot.quality) for dot in dots if dot.best)
    corners: list[tuple[float, float]] = []
    for (cost, quality), (after, _) in itertools.pairwise([*best, (end, 0.0)]):
        corners += [(cost, quality), (after, quality)]
    return corners


def _steps(axes: "Axes", dots: Sequence[Dot]) -> None:
    corners = _corners(dots, axes.get_xlim()[1])
    if corners:
        axes.plot(*zip(*corners, strict=True), color=MUTED, linewidth=1.4, zorder=1.5)


def _dot(axes: "Axes", dot: Dot, at: int) -> None:
    colour, marker = series(at), MARKERS[at % len(MARKERS)]
    for x, y in dot.seeds:
        (seed,) = axes.plot(x, y, linestyle="", marker=marker, markersize=4.5, zorder=2.5)
        seed.set(markerfacecolor=PAPER, markeredgecolor=colour, markeredgewidth=1.0)
    if dot.spread:
        ends = (dot.quality - dot.spread, dot.quality + dot.spread)
        axes.plot([dot.cost, dot.cost], ends, color=colour, linewidth=1.6)
    (mean,) = axes.plot(dot.cost, dot.quality, color=colour, marker=marker, markersize=9, zorder=3)
    mean.set(markeredgecolor=PAPER, markeredgewidth=1.0)


def _names(axes: "Axes", dots: Sequence[Dot]) -> None:
    """Each name beside its point, a thin line to it where there was room only further off."""
    axes.get_figure().draw_without_rendering()  # type: ignore[union-attr]  # settles where the axes lie
    spots = [_spot(axes, dot) for dot in dots]
    for dot, spot, (dx, dy) in zip(dots, spots, place(spots, _room(axes), _line(axes, dots)), strict=True):
        left, down = dx - spot.width / 2, dy - spot.height / 2
        near = (min(max(0.0, left), left + spot.width), min(max(0.0, down), down + spot.height))
        if math.hypot(*near) > 12:
            line = {"arrowstyle": "-", "color": FAINT, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 6}
            _annotate(axes, dot, "", near, arrowprops=line)
        style = {"color": INK if dot.best else MUTED, "va": "center", "ha": "center"}
        _annotate(axes, dot, _cut(dot.label), (dx, dy), **style)


def _annotate(axes: "Axes", dot: Dot, text: str, shift: tuple[float, float], **style: object) -> None:
    place = {"xytext": shift, "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (dot.cost, dot.quality), **place, **style).set_in_layout(False)  # type: ignore[arg-type]


def _cut(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"


def _spot(axes: "Axes", dot: Dot) -> Spot:
    """Where the point and what belongs to it lie on the page, and the size of its name."""
    x, y = _points(axes, dot.cost, dot.quality)
    taken = [Box(x - 6, y - 6, x + 6, y + 6)]
    if dot.spread:
        low, high = (_points(axes, dot.cost, dot.quality + sign * dot.spread)[1] for sign in (-1, 1))
        taken.append(Box(x - 2, low, x + 2, high))
    for seed in dot.seeds:
        if math.isfinite(seed[1]):
            a, b = _points(axes, *seed)
            taken.append(Box(a - 3, b - 3, a + 3, b + 3))
    return Spot(x, y, 7.2 * len(_cut(dot.label)) + 4, 15.0, tuple(taken))


def _line(axes: "Axes", dots: Sequence[Dot]) -> list[Box]:
    """The step line as thin boxes."""
    corners = [_points(axes, x, y) for x, y in _corners(dots, axes.get_xlim()[1])]
    pairs = [sorted(pair) for pair in itertools.pairwise(corners)]
    return [Box(a - 1, min(b, d) - 1, c + 1, max(b, d) + 1) for (a, b), (c, d) in pairs]


def _points(axes: "Axes", x: float, y: float) -> tuple[float, float]:
    """Data to points, which are a 72nd of an inch."""
    a, b = axes.transData.transform((x, y)) * 72 / axes.get_figure().dpi  # type: ignore[union-attr]
    return float(a), float(b)


def _room(axes: "Axes") -> Box:
    box = axes.get_window_extent()
    scale = 72 / axes.get_figure().dpi  # type: ignore[union-attr]
    return Box(box.x0 * scale, box.y0 * scale, box.x1 * scale + 14, box.y1 * scale + 8)
