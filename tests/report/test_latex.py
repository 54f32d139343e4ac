"""Tables for LaTeX: whatever a cell holds is text, and no table is wider or longer than a page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedsb.report.canvas import Data
from fedsb.report.latex import MOST_LINES, escaped, tabular

NAMES = [
    "a_b%&#$~^{c}\\", "[first] in its row", "*starred", "<b> | \"quoted\" 'q' `q`", "± − ≥ é ü ß",
    "fed--sb ---", "北京协和医院", "Москва", "ąđ «so»", "e\u0301", "\\end{tabular}\\input{/etc/passwd}",
    "x" * 200, "bert.encoder.layer.0.attention.self.query.and_more", "many words, more " * 9, "a\tb\nc", "",
]  # fmt: skip


def rows_of(text: str) -> list[str]:
    """Between the rules, each row in one text."""
    body = text.split("\\midrule\n", 1)[1].split("\\bottomrule")[0]
    return [row.strip() for row in body.split("\\\\\n") if row.strip()]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b 50% & #1", r"a\_b 50\% \& \#1"),
        ("{$x^2$}~\\", r"\{\$x\textasciicircum{}2\$\}\textasciitilde{}\textbackslash{}"),
        ("[a] *b", "{[}a] {*}b"),
        ("< > |", r"\textless{} \textgreater{} \textbar{}"),
        ("1.0\u202f% ± 2 −", r"1.0\,\% $\pm$ 2 $-$"),
        ("≥ ε …", r"$\ge$ $\varepsilon$ \ldots{}"),
        ("fed--sb", "fed-{}-sb"),
        ("—", "---"),
        ("Zürich é", "Zürich é"),
        ("\n", " "),
    ],
)
def test_signs_are_set_as_they_are(text: str, latex: str) -> None:
    assert escaped(text) == latex


def test_letters_that_pdflatex_has_no_font_for_are_named_by_number() -> None:
    assert escaped("in 北京") == r"in \ifdefined\Umathchar 北京\else U+5317 U+4EAC\fi{}"
    assert r"{T1}=0 ą\else U+0105\fi" in escaped("ą")


def test_no_cell_is_more_than_a_cell() -> None:
    rows = rows_of(tabular(Data(["name", "50 % & more"], [[name, "1"] for name in NAMES])))
    assert len(rows) == len(NAMES)
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert not [row for row in rows if row.startswith(("[", "*"))]


def test_columns_stand_as_on_the_page_and_a_total_apart() -> None:
    text = tabular(
        Data(["what", "way", "bytes"], [["a", "up", "1"], ["total", "", "1"]], (False, False, True), True)
    )
    assert r"\begin{tabular}{llr}" in text
    assert "\\midrule\ntotal" in text


def test_a_long_title_is_broken_where_its_cells_are_short() -> None:
    text = tabular(Data(["round", "matthews correlation", "up"], [["1", "0.1", "2"]]))
    assert r"\begin{tabular}[b]{@{}r@{}}matthews\\correlation\end{tabular}" in text


def test_a_table_longer_than_a_page_goes_on_in_another() -> None:
    text = tabular(Data(["n"], [[str(n)] for n in range(2 * MOST_LINES + 1)]))
    assert text.count(r"\toprule") == 3
    assert len(re.findall(r"^\d+ \\\\$", text, re.MULTILINE)) == 2 * MOST_LINES + 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
@pytest.mark.parametrize("fonts", ["", r"\usepackage[T1]{fontenc}"])
def test_pdflatex_sets_it_and_nothing_is_too_wide(tmp_path: Path, fonts: str) -> None:
    table = tabular(
        Data(["na_me & [x]", "of #3, a long title", "%"], [[name, name[:9], "1"] for name in NAMES])
    )
    head = rf"\documentclass{{article}}{fonts}\usepackage{{booktabs,graphicx}}\begin{{document}}\noindent"
    (tmp_path / "one.tex").write_text(f"{head}\n{table}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "one.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "one.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert "Overfull" not in log
    assert "Missing character" not in log
