"""A table as LaTeX: cells escaped, long titles and texts in lines, no wider than the text around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap

from fedsb.report.canvas import Data

SIGNS = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\char34{}", "[": "{[}", "*": "{*}",
})  # fmt: skip
"""What means something to LaTeX; the last two do where a row begins."""
LETTERS = str.maketrans({
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "≈": r"$\approx$", "≠": r"$\ne$",
    "≤": r"$\le$", "≥": r"$\ge$", "∞": r"$\infty$", "→": r"$\to$", "←": r"$\gets$", "●": r"$\bullet$",
    "†": r"$\dagger$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$",
    "Δ": r"$\Delta$", "ε": r"$\varepsilon$", "λ": r"$\lambda$", "μ": r"$\mu$", "σ": r"$\sigma$",
    "·": r"$\cdot$", "—": "---", "–": "--", "…": r"\ldots{}", "′": "$'$", "\u2010": "-", "\u2011": "-",
    "\u202f": r"\,", "\u2009": r"\,", "\u00a0": "~", "\n": " ", "\t": " ",
})  # fmt: skip
"""What pdfLaTeX does not know, or would not set well."""
IN_T1 = "ĄąĘęĮįŲųĐđÐðÞþŊŋ«»‹›‚„"
"""What pdfLaTeX sets with `\\usepackage[T1]{fontenc}` alone."""
SET = " -~\u00a1-\u017f\u2018-\u201e\u2020-\u2022\u2030\u2039\u203a\u20ac\u2122"
FOREIGN = re.compile(f"[{IN_T1}]+|(?:[^{SET}]|[ĦħĸĿŀŉŦŧſ‛])+")
"""What pdfLaTeX does not set, or not without T1."""
BREAKS = re.compile(r"(?<=[./_-])(?=\w)|(?<=\S{36})(?=\S)")
"""Where a long word may go on in the next line."""
LONGEST = 40
"""Letters of a cell beyond which it is set in lines of about so many."""
SHORTEST = 6
"""Letters of a title that are one line in any case."""
MOST_LINES = 42
"""On a page; a longer table goes on in another one."""


def tabular(data: Data) -> str:
    """For the packages booktabs and graphicx; several tables where one would be longer than a page."""
    right = data.right or (False, *(True for _ in data.columns[1:]))
    cells = [[str(cell) for cell in row] for row in data.rows]
    widths = [max((len(cell) for cell in column), default=0) for column in zip(*cells, strict=True)]
    titles = [_title(*each) for each in zip(map(str, data.columns), widths, right, strict=True)]
    rows = [" & ".join(map(_cell, row)) + r" \\" for row in cells]
    if data.total:
        rows[-1] = "\\midrule\n" + rows[-1]
    layout = "".join("r" if flush else "l" for flush in right)
    parts = [_table(layout, titles, part) for part in _pages(rows, [_height(row) for row in cells])]
    return "% packages: booktabs, graphicx\n" + "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """The text, to be set as it is. What pdfLaTeX cannot set it names by number, other engines set it."""
    plain = re.sub("-(?=-)", "-{}", text.translate(SIGNS))
    return FOREIGN.sub(_either, plain.translate(LETTERS))


def _either(match: re.Match[str]) -> str:
    numbers = " ".join(f"U+{ord(letter):04X}" for letter in match[0])
    if match[0][0] in IN_T1:
        numbers = rf"\ifnum\pdfstrcmp{{\encodingdefault}}{{T1}}=0 {match[0]}\else {numbers}\fi"
    return rf"\ifdefined\Umathchar {match[0]}\else {numbers}\fi{{}}"


def _table(layout: str, titles: Sequence[str], rows: Sequence[str]) -> str:
    lines = [
        r"\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{\setlength{\tabcolsep}{4pt}%",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}%",
    ]
    return "\n".join(lines)


def _title(text: str, width: int, right: bool) -> str:
    """In lines that are no longer than the column's cells, as far as its words allow that."""
    lines = wrap(text, max(min(width, LONGEST), SHORTEST), break_long_words=False, break_on_hyphens=False)
    if len(lines) < 2:
        return escaped(text)
    side = "r" if right else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r"\\".join(map(escaped, lines)) + r"\end{tabular}"


def _cell(text: str) -> str:
    if len(text) <= LONGEST:
        return escaped(text)
    broken = r"\allowbreak{}".join(map(escaped, BREAKS.split(text)))
    return rf"\parbox[t]{{{LONGEST / 2:g}em}}{{\raggedright {broken}\strut}}"


def _height(row: Sequence[str]) -> int:
    """Lines."""
    return max(-(-len(cell) // LONGEST) for cell in row)


def _pages(rows: Sequence[str], heights: Sequence[int]) -> Iterator[Sequence[str]]:
    """The rows, as many at a time as a page holds."""
    page: list[str] = []
    lines = 0
    for row, height in zip(rows, heights, strict=True):
        if page and lines + height > MOST_LINES:
            yield page
            page, lines = [], 0
        page.append(row)
        lines += max(height, 1)
    yield page
