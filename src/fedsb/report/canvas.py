"""From a drawing function to an inline SVG whose colours and fonts come from the page, or to a file.

Drawing functions name colours by their place in the palette, `C0` to `C12`. On a page these are stand-ins,
`#fe01xx`, which are replaced by CSS variables, so that one drawing suits light, dark and paper, and legends
are HTML, where long names wrap. A file has colours of its own; title, legend and note are in it.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from fedsb.common.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SERIES = 8
VARIABLES = ("ink", "muted", "grid", "paper", "faint")
INK, MUTED, GRID, PAPER, FAINT = (f"C{SERIES + n}" for n in range(len(VARIABLES)))
STAND_INS = [f"#fe01{n:02x}" for n in range(SERIES + len(VARIABLES))]
IN_FILES = [
    *("#0b62a8", "#c8500a", "#00805c", "#a3478a", "#9a7000", "#2b93c9", "#4a4f57", "#d14a61"),
    *("#000000", "#444444", "#dddddd", "#ffffff", "#dddddd"),
]
"""Of a printed page, as in style.css."""
GLYPHS = "●■▲◆▼"
MARKERS = "os^Dv"
WIDTH = 460.0
LEGEND_LINE, NOTE_LINE = 0.22, 0.19
"""Inches."""
NOTE_LETTERS = 80
"""In a line."""


class Key(NamedTuple):
    """One line of a legend: `paint` is the CSS class that colours `glyph`."""

    glyph: str
    paint: str
    name: str


class Drawing(NamedTuple):
    """What draws on axes, and the size in points. `name` keeps its ids apart from those of other plots."""

    paint: "Callable[[Axes], None]"
    name: str
    width: float = WIDTH
    height: float = 250.0
    y_title: str = ""
    """What is written along the y axis of a file; on a page the title says it."""


class Data(NamedTuple):
    """The numbers behind a plot, not rounded; or a table's cells as texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: tuple[bool, ...] = ()
    """Which columns are set flush right; empty: all but the first."""
    total: bool = False
    """Whether the last row is one."""


class Plot(NamedTuple):
    title: str
    drawing: Drawing
    alt: str
    data: Data
    keys: tuple[Key, ...] = ()
    note: str = ""

    @property
    def svg(self) -> str:
        """An SVG element for a page."""
        import matplotlib.style

        name = self.drawing.name
        style = {**_style(STAND_INS), "svg.hashsalt": name}
        with matplotlib.style.context(["default", style]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a browser has fonts of its own
            written = io.StringIO()
            _figure(self.drawing)[0].savefig(written, format="svg", transparent=True, metadata={"Date": None})
        return _inline(written.getvalue())

    def save(self, file: Path, kind: str) -> None:
        """Write it as a pdf, svg or png that stands alone, with its title, legend and note."""
        import matplotlib.style

        style = {**_style(IN_FILES), "svg.fonttype": "path", "pdf.fonttype": 42, "font.size": 11.0}
        style |= {"font.family": families(self._letters())}
        with matplotlib.style.context(["default", style]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # said by `families`
            figure, axes = _figure(self.drawing)
            axes.set_title(self.title, loc="left")
            if self.drawing.y_title:
                axes.set_ylabel(self.drawing.y_title)
            self._explain(figure)
            metadata = {"Date" if kind == "svg" else "CreationDate": None} if kind != "png" else {}
            figure.savefig(file, format=kind, dpi=200, metadata=metadata)

    def _explain(self, figure: "Figure") -> None:
        """Put the legend and the note below the axes."""
        note, below = wrap(self.note, NOTE_LETTERS), -(-len(self.keys) // 2)
        if not note and not below:
            return
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * below + NOTE_LINE * len(note))
        style = {"title_fontproperties": {"size": 9}, "alignment": "left", "ncols": 2}
        handles = list(map(_handle, self.keys))
        figure.legend(handles=handles, title="\n".join(note), loc="outside lower left", **style)

    def _letters(self) -> frozenset[str]:
        """All that may be drawn."""
        cells = [cell for row in self.data.rows for cell in row if isinstance(cell, str)]
        return frozenset().union(
            self.title, self.note, *self.data.columns, *cells, *(key.name for key in self.keys)
        )


def series(index: int) -> str:
    """The colour of data series `index`."""
    return f"C{index % SERIES}"


def key(index: int, name: str, glyph: str = "") -> Key:
    return Key(glyph or GLYPHS[index % len(GLYPHS)], f"s{index % SERIES}", name)


@cache
def families(letters: frozenset[str]) -> list[str]:
    """Matplotlib's own font, and of those installed the first that have what it lacks."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    own = "DejaVu Sans"
    names, lacking = [own], {ord(letter) for letter in letters} - get_font(findfont(own)).get_charmap().keys()
    for font in fontManager.ttflist if lacking else ():
        if font.name.startswith("Last Resort"):  # boxes, of every letter
            continue
        with suppress(RuntimeError, OSError):  # a font of another kind, or one that was removed
            if held := lacking & get_font(font.fname).get_charmap().keys():
                names, lacking = [*names, font.name], lacking - held
    if lacking:
        said = printable("".join(map(chr, sorted(lacking))))
        warnings.warn(f"no font on this machine has {said}: boxes in files of plots", stacklevel=3)
    return names


def _figure(drawing: Drawing) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), layout="constrained")
    axes = figure.add_subplot()
    drawing.paint(axes)
    return figure, axes


def _handle(key: Key) -> "Line2D":
    from matplotlib.lines import Line2D

    colour = series(int(key.paint[1:])) if key.paint[1:].isdigit() else FAINT
    marker = dict(zip(GLYPHS, MARKERS, strict=True)).get(key.glyph, "X")
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=key.name)


def _style(colours: Sequence[str]) -> dict[str, object]:
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=colours),
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 12.0,
        "legend.frameon": False,
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
    place = int(match[1], 16)
    return f"var(--s{place})" if place < SERIES else f"var(--plot-{VARIABLES[place - SERIES]})"
