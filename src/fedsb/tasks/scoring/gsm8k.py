"""GSM8K's answers (Cobbe et al. 2021, arXiv 2110.14168): one number at the end of a worked solution."""

import re
from collections.abc import Sequence
from fractions import Fraction

from fedsb.tasks.scoring.answer_text import DENIES, answer_text, before_next_question
from fedsb.tasks.scoring.mathematics import boxed

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_CURRENCY = r"(?:[$€£¥₹]\s*)?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}.])-(?=[$€£¥₹\d.]))?{_CURRENCY}(?:(?P<whole>\d+) +(?=\d+ */ *\d))?"
    rf"(?P<top>{_DIGITS})(?:\s*/\s*(?P<bottom>\d+))?(?!\d)(?:\s*(?P<scale>thousand|million|billion)\b)?"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_MARK = re.compile(r"####(?!#)(?P<line>[^\n]*(?:\n(?=\s*[-$€£¥₹\d.]).*)?)")
_SAYS = re.compile(
    rf"\banswers?\b\s*(?:(?:is|are|was|would be|will be|equals)\b\s*:?|[:=]\s*(?={_CURRENCY}[-$\d.]|\Z))"
    r"|^\W*(?:final\s+)?answer\W*\n",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWERED = re.compile(rf"\\boxed|{_SAYS.pattern}", re.IGNORECASE | re.MULTILINE)
_TERMS = r"[\d\s.,$€£+*/×÷()%x-]{0,40}"
_SUM = re.compile(rf"(?:{_TERMS}[+*/×÷x-]{_TERMS}[\d)%]\s*=)+")
_OR = re.compile(r"(?:\s*[A-Za-z]+){0,2},?\s*\bor\s+|\s*(?:[,/&+*×-]|\band\b|\bto\b)\s*(?:and|or)?\s*")
_DENIED = re.compile(r"[^.!?\n]*\?|\s*(?:is|are|was)\s+(?:not|wrong|incorrect)\b")
_LATEX = (
    (re.compile(r"<<[^<>\n]*>>"), ""),  # the data set's own notes for a calculator
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)"), "*"),
    (re.compile(r"\\[,!;: ()\[\]]"), ""),
    (re.compile(r"(?<=\d)½"), " 1/2"),
)


def gold(text: str) -> str | None:
    """The number behind #### in a data set's own solution; None if there is none."""
    _, mark, line = text.rpartition("####")
    return _first(line) if mark else None


def extract(output: str) -> str | None:
    """The number a model's output ends up with, as it is written there, or None.

    Looked for in this order, and not further once found: behind the first #### that is no heading, in the
    last \\boxed{...}, behind the last "answer is", the last number. The next problem that a model makes up
    counts for nothing (`answer_text`). A mark with nothing behind it was cut off before its number: None. So
    is a number that is denied, asked, or offered beside another one.
    """
    text = _plain(answer_text(output))
    for mark in _MARK.finditer(text):
        if not mark["line"].strip() or _leads(mark["line"]):
            return _first(mark["line"])
    text = before_next_question(text, _ANSWERED)
    if "\\boxed" in text:
        return _first(boxed(text) or "")
    said = [text[match.end() :] for match in _SAYS.finditer(text)]
    return _last_said(said) if said else _last(text)


def _last_said(said: Sequence[str]) -> str | None:
    """The number in the last of the texts behind "answer is" that has one. One that was cut off before its
    number has none, unless it repeats what was said twice."""
    numbers = [_first(text) for text in said if _NUMBER.search(_line(text))]
    repeats = len(numbers) > 1 and all(number and same(number, numbers[-1] or "") for number in numbers)
    return numbers[-1] if numbers and (said[-1].strip() or repeats) else None


def same(answer: str, gold: str) -> bool:
    """Equal as numbers: 1,000 and 1000.00 are, 0.33 and 1/3 are not."""
    return _value(answer) == _value(gold)


def _plain(text: str) -> str:
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _leads(line: str) -> bool:
    """Whether what follows #### is an answer: headings such as "#### Step 1" and "#### 1. Count" are not."""
    line = _line(line)
    return bool(
        _SAYS.search(line) or (re.match(r"[-(\s]*[$€£¥₹\d.]", line) and not re.match(r"\d+[.)] [A-Z]", line))
    )


def _first(text: str) -> str | None:
    """The first number of the first line, behind a sum that it is the result of; None if it is left open."""
    line = re.sub(r"^- +(?=\d)", "-", _line(text))
    if sum_ := _SUM.match(line):
        line = line[sum_.end() :].strip()
    number = _NUMBER.search(line)
    if number is None or DENIES.search(line[: number.start()]):
        return None
    joint = _OR.match(line, number.end())
    other = _NUMBER.match(line, joint.end()) if joint else None
    return None if other and not same(_written(other), _written(number)) else _written(number)


def _last(text: str) -> str | None:
    """The last number of a text without any mark; None if its sentence leaves it open."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    before = re.split(r"[.!?]\s|\n", text[: numbers[-1].start()])[-1]
    before = before[max((match.end() for match in _NUMBER.finditer(before)), default=0) :]
    left_open = DENIES.search(before) or re.search(r"\bor\s*$|^\s*(?:and|to)\s*$", before)
    return None if left_open or _DENIED.match(text, numbers[-1].end()) else _written(numbers[-1])


def _written(number: re.Match[str]) -> str:
    whole = f"{number['whole']} " if number["whole"] else ""
    bottom = f"/{number['bottom']}" if number["bottom"] else ""
    scale = f" {number['scale']}" if number["scale"] else ""
    return f"{number['sign'] or ''}{whole}{number['top'].replace(',', '')}{bottom}{scale}"


def _value(text: str) -> Fraction | None:
    number = _NUMBER.fullmatch(text)
    if number is None:
        return None
    top, bottom = Fraction(number["top"].replace(",", "")), Fraction(number["bottom"] or 1)
    if bottom == 0:
        return None
    size = (Fraction(number["whole"] or 0) + top / bottom) * _SCALES.get(number["scale"] or "", 1)
    return -size if number["sign"] else size
