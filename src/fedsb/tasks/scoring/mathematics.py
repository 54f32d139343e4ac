"""MATH's answers (Hendrycks et al. 2021, arXiv 2103.03874): a formula in a box at the end of a solution.

Found here; compared by math-verify (`math_judge`), but for what it does not tell apart: words, times of day,
bases and units.
"""

import itertools
import re

from fedsb.tasks.scoring.answer_text import DENIES, answer_text, before_next_question

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?P<open>\{)?")
_SAYS = re.compile(
    r"\banswers?\s+(?:is|are)\b\s*:?|\banswer\s*:|^\W*(?:final\s+)?answer\W*\n", re.IGNORECASE | re.MULTILINE
)
_ANSWERED = re.compile(rf"{_BOX.pattern}|{_SAYS.pattern}", re.IGNORECASE | re.MULTILINE)
_MATH = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|\$(?P<b>(?:\\\$|[^$])+)\$|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\]", re.DOTALL
)
_CLAIM = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?"
    r"(?P<formula>\${1,2}(?:\\\$|[^$])+\${1,2}|\\\((?:(?!\\\().)+\\\)|\\\[(?:(?!\\\[).)+\\\]|-?[\d.,/]*\d)\.?",
    re.IGNORECASE,
)
_AND = re.compile(r"\s*(?:,|\bor\b|\band\b)\s*(?:(?:or|and)\s+)?")
_JOINT = re.compile(r"[\s$.]*(?:,|\bor\b|\band\b)[\s$]*(?:(?:or|and)[\s$]*)?(?:[A-Za-z]\s*=\s*)?")
_WORDS = re.compile(r"(?:\\(?:text|mbox|textbf|mathrm|textit)\s*\{[^{}]*\}|[A-Za-z\s().,'-])+")
_COMMANDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textit)\s*\{([^{}]*)\}")
_TIME = re.compile(r"\d{1,2}:\d{2}")
_BASE = re.compile(r"\d_\{?(\d+)\}?\s*$")
_UNIT = re.compile(
    r"(?<=[\d}\s)])\\(?:text|mbox|mathrm)\s*\{\s*([A-Za-z][A-Za-z. ]*?)\s*\}(?:\^\{?\d\}?)?\s*$"
)
_BARE_UNIT = re.compile(r"(?<=\d) +(?!pi\b)([A-Za-z]{2,}(?: [A-Za-z]+)?)$")
_NOISE = re.compile(r"\\[!,;: ]|\\left|\\right|~|\\displaystyle")


def gold(text: str) -> str | None:
    """The answer in a data set's own solution: its last box, or all of a text without any. None if empty."""
    if _BOX.search(text):
        return boxed(text)
    return _bare(text) or None


def extract(output: str) -> str | None:
    """The answer an output ends up with, or None.

    The last box (all that are joined by a comma, "or", "and"); without any, what stands behind the last
    "answer is", up to the formula's or the sentence's end; else a last line that is one formula. The next
    problem that a model makes up counts for nothing (`answer_text`). A box that is not closed was cut off:
    None. Numbers that merely occur are no answers.
    """
    text = before_next_question(answer_text(output), _ANSWERED)
    if _BOX.search(text):
        return boxed(text)
    if said := list(_SAYS.finditer(text)):
        return _said(text[said[-1].end() :].lstrip(" \n*:"))
    claim = _CLAIM.fullmatch(text.rstrip().rpartition("\n")[2].strip())
    return _bare(claim["formula"]) if claim else None


def _said(text: str) -> str | None:
    """The formulas that a text begins with, else its first sentence; None if that is empty or denies it."""
    parts: list[str] = []
    end = 0
    while math := _MATH.match(text, end):
        parts.append(_bare(next(group for group in math.groups() if group)))
        joint = _AND.match(text, math.end())
        end = joint.end() if joint else len(text)
    if not parts:
        parts = [_bare(re.split(r"\n|\.(?=\s|$)", text, maxsplit=1)[0])]
    return ", ".join(parts) if all(parts) and not DENIES.match(parts[0]) else None


def boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds, braces nested at will; None if it is empty or not closed.

    Boxes that are joined to it ("\\boxed{1} or \\boxed{2}") belong to it: "1, 2".
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    last = text[boxes[-1].end() :]
    contents = [_braced(last) if boxes[-1]["open"] else re.split(r"[\s$]", last.lstrip())[0]]  # \boxed 5
    for box, after in reversed(list(itertools.pairwise(boxes))):
        between = text[box.end() : after.start()]
        content = _braced(between)
        if content is None or not _JOINT.fullmatch(_COMMANDS.sub(r"\1", between[len(content) + 1 :])):
            break
        contents.insert(0, content)
    answers = [_bare(content or "") for content in contents]
    return ", ".join(answers) if all(answers) else None


def plainly_same(answer: str, gold: str) -> bool | None:
    """True or False where no algebra is needed or none would help; None where it is."""
    a, b = _plain(answer), _plain(gold)
    if a == b:
        return True
    if _TIME.fullmatch(a) and _TIME.fullmatch(b):
        return False
    if any(_differ(pattern, answer, gold) for pattern in (_BASE, _UNIT)):
        return False
    if _is_words(gold) or _is_words(answer):
        return _words(answer) == _words(gold)
    return None


def _braced(text: str) -> str | None:
    """Up to the brace that closes one opened before the text; None if none does. \\{ and \\} do not count."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[: match.start()]
    return None


def _bare(text: str) -> str:
    """Without the dollars, blanks and full stop around it; a unit in plain letters as \\text{...}."""
    text = text.strip()
    if text.startswith("$") and text.rstrip(".").endswith("$") and len(text) > 1:
        text = text.rstrip(".").strip("$")
    if text.startswith(("\\(", "\\[")) and text.endswith(("\\)", "\\]")):
        text = text[2:-2]
    return _BARE_UNIT.sub(r"\\text{ \1}", text.strip("€£ \n").removesuffix(".").strip())


def _plain(text: str) -> str:
    text = _NOISE.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"\s", "", text.replace("\\$", "").replace("$", ""))


def _differ(pattern: re.Pattern[str], a: str, b: str) -> bool:
    """Whether both have what the pattern finds, and not the same."""
    parts = [match[1].lower().rstrip("s.") if (match := pattern.search(text)) else "" for text in (a, b)]
    return all(parts) and parts[0] != parts[1]


def _is_words(text: str) -> bool:
    """Words in \\text{...}, and no formula. Bare letters are variables, one in brackets aside."""
    bare = re.sub(r"\s", "", _COMMANDS.sub("", text))
    return bool(_COMMANDS.search(text)) and not bare.strip("().,") and bool(_WORDS.fullmatch(text))


def _words(text: str) -> str:
    return re.sub(r"[\s().,'\"{}$\\-]", "", _COMMANDS.sub(r"\1", text)).lower()
