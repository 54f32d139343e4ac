"""From a drawing function to an inline SVG whose colours and fonts come from the page.

Matplotlib draws with stand-in colours, `#fe01xx`. They are replaced by CSS variables, so that one drawing
suits light, dark and paper. Legends are HTML, not drawn: long names wrap, and no name reaches Matplotlib.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, PAPER, FAINT = (f"#fe01{n:02x}" for n in range(5))
VARIABLES = ("ink", "muted", "grid", "paper", "faint")
SERIES = 8
GLYPHS = "●■▲◆▼"
MARKERS = "os^Dv"
WIDTH = 460.0


class Key(NamedTuple):
    """One line of a legend: `paint` is the CSS class that colours `glyph`."""

    glyph: str
    paint: str
    name: str


class Plot(NamedTuple):
    title: str
    svg: str
    alt: str
    keys: tuple[Key, ...] = ()
    note: str = ""


def series(index: int) -> str:
    """The stand-in colour of data series `index`."""
    return f"#fe01{16 + index % SERIES:02x}"


def key(index: int, name: str, glyph: str = "") -> Key:
    return Key(glyph or GLYPHS[index % len(GLYPHS)], f"s{index % SERIES}", name)


def draw(paint: "Callable[[Axes], None]", *, name: str, width: float = WIDTH, height: float = 250.0) -> str:
    """The SVG element that `paint` draws. `name` keeps its ids apart from those of the page's other plots."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", {**_style(), "svg.hashsalt": name}]):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _inline(written.getvalue())


def _style() -> dict[str, object]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 12.0,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
    }


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # as Matplotlib before 3.11 writes it
    svg = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"#fe01([0-9a-f]{2})", _variable, svg)
    svg = re.sub(r" (?:d|x|y)=\"[^\"]*\"", _shorten, svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _shorten(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, on one line: half the size and nothing to be seen of it."""
    return re.sub(r"\s*\n", " ", re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])).replace(' "', '"')


def _variable(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    return f"var(--plot-{VARIABLES[code]})" if code < 16 else f"var(--s{code - 16})"
