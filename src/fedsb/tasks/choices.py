"""Multiple choice in the answer formats of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933): the eight
commonsense data sets ask for true/false, solution1/2, answer1..5, ending1..4 or option1/2; and by letters."""

import re
from collections.abc import Sequence

LETTERS = tuple("ABCDEFGHIJ")
FAMILIES: dict[str, tuple[str, ...]] = {
    "true/false": ("true", "false"),
    "solution": ("solution1", "solution2"),
    "answer": tuple(f"answer{i}" for i in range(1, 6)),
    "ending": tuple(f"ending{i}" for i in range(1, 5)),
    "option": ("option1", "option2"),
    "letter": LETTERS,
}
_FORMAT = re.compile(r"Answer format:\s*([\w/]+)")


def are_letters(choices: Sequence[str]) -> bool:
    """Whether the choices are A, B, C and so on."""
    return set(choices) <= set(LETTERS)


def family_of(choice: str) -> tuple[str, ...] | None:
    """The choices among which this is one; None if it is in none of the formats."""
    return next((members for members in FAMILIES.values() if choice in members), None)


def name_pattern(choice: str) -> str:
    """A regular expression for a choice's name: "answer 1" is answer1."""
    return re.sub(r"(\d+)$", r"\\s?\1", choice)


def offered(prompt: str) -> tuple[str, ...]:
    """The choices that a prompt names behind "Answer format:"; () if it names none."""
    formats = _FORMAT.findall(prompt)
    return tuple(formats[-1].split("/")) if formats else ()


def option_texts(prompt: str, choices: Sequence[str]) -> dict[str, str]:
    """The text that a prompt gives each choice, such as "Answer1: dry" or "(B) wet"; {} if it lists no two.

    They stand in their order, the last such list counts; a text ends where the next begins, or with its line.
    """
    case = re.NOFLAG if are_letters(choices) else re.IGNORECASE
    marks = [re.compile(rf"(?<!\w)\(?{name_pattern(choice)}[.):]+\s", case) for choice in choices]
    places = [match.start() for match in marks[0].finditer(prompt)] if marks else []
    _, *parts = _split_in_order(prompt[places[-1] :], marks) if places else [""]
    texts = [part.strip().split("\n")[0] for part in parts]
    return dict(zip(choices, texts, strict=False)) if len(texts) > 1 else {}


def _split_in_order(text: str, marks: Sequence[re.Pattern[str]]) -> list[str]:
    """What stands before the first mark, between it and the second, and so on up to one that is missing."""
    parts = [text]
    for mark in marks:
        if not (match := mark.search(parts[-1])):
            break
        parts[-1:] = [parts[-1][: match.start()], parts[-1][match.end() :]]
    return parts
