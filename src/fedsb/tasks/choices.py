"""Multiple choice in the answer formats of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933): the eight
commonsense data sets ask for true/false, solution1/2, answer1..5, ending1..4 or option1/2."""

import re
from collections.abc import Sequence

FAMILIES: dict[str, tuple[str, ...]] = {
    "true/false": ("true", "false"),
    "solution": ("solution1", "solution2"),
    "answer": tuple(f"answer{i}" for i in range(1, 6)),
    "ending": tuple(f"ending{i}" for i in range(1, 5)),
    "option": ("option1", "option2"),
}
_SAYS = re.compile(r"\banswer\s+is\b\s*:?", re.IGNORECASE)
_DENIES = re.compile(r"\b(?:not|never|neither|nor)\b|n't\b", re.IGNORECASE)
_FORMAT = re.compile(r"Answer format:\s*([\w/]+)")
_JOINS = re.compile(r"\s*(?:,|/|&|or\b|and\b)\s*(?:(?:or|and)\b)?\s*", re.IGNORECASE)
_LEADS = re.compile(r"[\s\"'`*(:_]*(?:the\s+)?", re.IGNORECASE)


def family_of(choice: str) -> tuple[str, ...] | None:
    """The choices among which this is one; None if it is in none of LLM-Adapters' formats."""
    return next((members for members in FAMILIES.values() if choice in members), None)


def offered(prompt: str) -> tuple[str, ...]:
    """The choices that a prompt names behind "Answer format:"; () if it names none."""
    found = _FORMAT.findall(prompt)
    return tuple(found[-1].split("/")) if found else ()


def extract(output: str, choices: Sequence[str]) -> str | None:
    """The choice an output settles on, or None where it names none or leaves it open.

    What stands right behind the first "answer is" counts, unless another choice is joined to it (by a comma,
    a slash, "or", "and"). Where something else stands there, or "answer is" does not occur, the sentence (the
    first line) must name one single choice and deny nothing. Upper case and a blank before the digit do not
    matter.
    """
    said = _SAYS.search(output)
    rest = output[said.end() :] if said else output.lstrip()
    named = _pattern(choices)
    direct = named.match(rest, _LEADS.match(rest).end())  # type: ignore[union-attr]  # it matches nothing too
    if said and direct:
        return None if _joined(named, rest, direct) else _name(direct)
    sentence = re.split(r"\n|\.(?=\s|$)", rest, maxsplit=1)[0] if said else rest.split("\n")[0]
    found = {_name(match) for match in named.finditer(sentence)}
    return found.pop() if len(found) == 1 and not _DENIES.search(sentence) else None


def _pattern(choices: Sequence[str]) -> re.Pattern[str]:
    """Any of the choices as a word of its own; "Answer 1" is answer1, answer12 is not."""
    words = (re.sub(r"(\d+)$", r"\\s?\1", re.escape(choice)) for choice in choices)
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)


def _name(match: re.Match[str]) -> str:
    return re.sub(r"\s", "", match[0]).lower()


def _joined(named: re.Pattern[str], text: str, first: re.Match[str]) -> bool:
    """Whether another choice is joined to the first: "answer1 or answer2", "true/false"."""
    at, joint = first.end(), _JOINS.match(text, first.end())
    second = named.match(text, joint.end()) if joint else None
    return second is not None and second.start() > at and _name(second) != _name(first)
