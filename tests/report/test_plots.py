"""Drawings: what is written along the axes, where it stands, and in which fonts."""

import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsb.report.canvas import Plot, families
from fedsb.report.plots import Curve, Span, curves, stacked
from fedsb.report.units import decimal

pytestmark = pytest.mark.plots
LONG = ["St Mary and all", "Universitätsklinikum", "北京协和医院", "~tilde^hat", "#2 {north} $5"]


def line(*heights: float, note: str = "") -> Plot:
    items = [Curve("score", list(enumerate(heights)))]
    drawn = curves("Score by round", items, Span("round", "Score", decimal), name="one", note=note)
    assert drawn is not None
    return drawn


def axes_of(plot: Plot) -> Axes:
    axes = Figure().add_subplot()
    plot.drawing.paint(axes)
    return axes


@pytest.mark.parametrize(
    ("heights", "first", "last"),
    [
        ((1, 2, 3), "below", "above"),
        ((3, 2, 1), "above", "below"),
        ((1, 4, 2), "below", "below"),
        ((4, 1, 3), "above", "above"),
        ((2, 2, 2), "below", "above"),
    ],
)
def test_the_ends_have_their_values_away_from_the_curve(
    heights: tuple[float, ...], first: str, last: str
) -> None:
    texts = axes_of(line(*(height + 100 for height in heights))).texts
    assert ["above" if text.xyann[1] > 0 else "below" for text in texts] == [first, last]


def test_names_of_bars_are_slanted_where_they_have_no_room() -> None:
    def rotation(names: list[str]) -> set[float]:
        plot = stacked("Examples", names, [("examples", [1] * len(names))], name="bars")
        return {label.get_rotation() for label in axes_of(plot).get_xticklabels()}

    assert rotation(["a", "b", "c"]) == {0}
    assert rotation(LONG) == {35}


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_a_file_has_its_y_title_and_note(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text, *a, **k: said.append(text))
    monkeypatch.setattr(Figure, "legend", lambda self, **k: said.append(k["title"]))
    line(1, 2, note="Of three seeds.").save(tmp_path / f"one.{kind}", kind)
    assert said == ["Score", "Of three seeds."]


def test_on_a_page_the_title_says_what_the_y_axis_is() -> None:
    assert "Score" not in re.sub(r"<[^>]*>", "", line(1, 2).svg)


def test_letters_without_a_font_are_said_once_and_drawn_as_boxes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no font on this machine has \U00012000"):
        line(1, 2, note="\U00012000").save(tmp_path / "one.pdf", "pdf")
    assert families(frozenset("ab ±−≥éε")) == ["DejaVu Sans"]
