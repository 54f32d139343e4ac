"""GSM8K's answers (Cobbe et al. 2021, arXiv 2110.14168): one number at the end of a worked solution."""

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}.])-)?\s*\$?\s*(?P<top>{_DIGITS})(?:\s*/\s*(?P<bottom>\d+))?(?!\d)"
)
_MARK = "####"
_SAYS = re.compile(r"answer\s*(?:is|:)\s*:?", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_LOOKALIKES = str.maketrans({"−": "-", "–": "-", "\u00a0": " ", "٫": ".", "⁄": "/"})


def gold(text: str) -> str | None:
    """The number behind #### in a data set's own solution; None if there is none."""
    _, mark, rest = text.rpartition(_MARK)
    return _first(rest) if mark else None


def extract(output: str) -> str | None:
    """The number a model's output ends up with, as it is written there, or None.

    Looked for in this order, and not further once found: behind the first ####, in the last \\boxed{...},
    behind the last "answer is", the last number. A #### or "answer is" with nothing behind it was cut off
    before its number: None. The first #### counts since what follows it is the next problem.
    """
    text = output.translate(_LOOKALIKES).replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    if _MARK in text:
        return _first(text.split(_MARK)[1])
    if boxes := _BOX.findall(text):
        return _first(boxes[-1])
    if said := list(_SAYS.finditer(text)):
        return _first(text[said[-1].end() :])
    found = list(_NUMBER.finditer(text))
    return _written(found[-1]) if found else None


def same(answer: str, gold: str) -> bool:
    """Equal as numbers: 1,000 and 1000.00 are, 0.33 and 1/3 are not."""
    return _value(answer) == _value(gold)


def _first(text: str) -> str | None:
    """The first number of the first line that has one within it; None if the first line has none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    found = _NUMBER.search(line)
    return _written(found) if found else None


def _written(found: re.Match[str]) -> str:
    sign, top, bottom = (found["sign"] or "").strip(), found["top"].replace(",", ""), found["bottom"]
    return f"{sign}{top}/{bottom}" if bottom else f"{sign}{top}"


def _value(number: str) -> Fraction | None:
    top, _, bottom = number.replace(",", "").partition("/")
    try:
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None
