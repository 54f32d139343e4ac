"""MATH's answers (Hendrycks et al. 2021, arXiv 2103.03874): a formula in a box at the end of a solution.

Found here; compared by math-verify (`math_judge`), but for what it does not tell apart: words, times of day,
bases and units.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?P<open>\{)?")
_SAYS = re.compile(r"\banswer\s+is\b\s*:?|\banswer\s*:", re.IGNORECASE)
_WORDS = re.compile(r"(?:\\(?:text|mbox|textbf|mathrm|textit)\s*\{[^{}]*\}|[A-Za-z\s().,'-])+")
_COMMANDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textit)\s*\{([^{}]*)\}")
_TIME = re.compile(r"\d{1,2}:\d{2}")
_BASE = re.compile(r"\d_\{?(\d+)\}?\s*$")
_UNIT = re.compile(
    r"(?<=[\d}\s)])\\(?:text|mbox|mathrm)\s*\{\s*([A-Za-z][A-Za-z. ]*?)\s*\}(?:\^\{?\d\}?)?\s*$"
)
_NOISE = re.compile(r"\\[!,;: ]|\\left|\\right|~|\\displaystyle")


def gold(text: str) -> str | None:
    """The answer in a data set's own solution: its last box, or all of a text without any. None if empty."""
    if _BOX.search(text):
        return boxed(text)
    return _bare(text) or None


def extract(output: str) -> str | None:
    """The answer an output ends up with, or None.

    The last box; in an output without one, what stands behind the last "answer is", up to the line's end.
    A box that is not closed was cut off: None. Numbers that merely occur are no answers.
    """
    if _BOX.search(output):
        return boxed(output)
    said = list(_SAYS.finditer(output))
    if not said:
        return None
    line = output[said[-1].end() :].lstrip().split("\n")[0]
    return _bare(line) or None


def boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds, braces nested at will; None if it is empty or not closed."""
    found = list(_BOX.finditer(text))
    if not found:
        return None
    if not found[-1]["open"]:  # \boxed 5
        return _bare(re.split(r"[\s$]", text[found[-1].end() :].lstrip(), maxsplit=1)[0]) or None
    inner = _braced(text[found[-1].end() :])
    return _bare(inner) or None if inner is not None else None


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
    """Without the dollars, blanks and full stop around it."""
    text = text.strip()
    if text.startswith("$") and text.rstrip(".").endswith("$") and len(text) > 1:
        text = text.rstrip(".").strip("$")
    return text.strip().removesuffix(".").strip()


def _plain(text: str) -> str:
    text = _NOISE.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"\s", "", text.replace("\\$", "").replace("$", ""))


def _differ(pattern: re.Pattern[str], a: str, b: str) -> bool:
    """Whether both have what the pattern finds, and not the same."""
    found = [match[1].lower().rstrip("s.") if (match := pattern.search(text)) else "" for text in (a, b)]
    return all(found) and found[0] != found[1]


def _is_words(text: str) -> bool:
    """Words in \\text{...}, and no formula. Bare letters are variables, one in brackets aside."""
    bare = re.sub(r"\s", "", _COMMANDS.sub("", text))
    return bool(_COMMANDS.search(text)) and not bare.strip("().,") and bool(_WORDS.fullmatch(text))


def _words(text: str) -> str:
    return re.sub(r"[\s().,'\"{}$\\-]", "", _COMMANDS.sub(r"\1", text)).lower()
