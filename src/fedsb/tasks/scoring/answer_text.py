"""The part of a model's output that can hold its answer, as plain text."""

import re

_BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")
_LOOKALIKES = str.maketrans("−–\u00a0\u202f٫⁄“”‘’", "--  ./\"\"''")
_HEADED = r"[#*> \t]*(?:question|problem|exercise|instruction|input|user|human|q)\s*\d*\s*[:.]"
_ASKED = r"[^\n]+\?\s*\n\s*(?:answer|response|solution|a)\s*:"
_NEXT = re.compile(rf"^(?:{_HEADED}|{_ASKED})|<\||\[INST\]", re.IGNORECASE | re.MULTILINE)
_ASKS = re.compile(r"\n[^\n]*\?[ \t]*(?=\n|\Z)")
DENIES = re.compile(r"\b(?:not|never|neither|nor|cannot)\b|n't\b", re.IGNORECASE)


def answer_text(output: str) -> str:
    """The output without thoughts, bold type and the next problem that a model makes up for itself.

    A next problem begins at a line such as "Question:" or "### Instruction:", or at a question that is
    followed by "Answer:"; an output may begin with such a line, since it then repeats what it was asked.
    Thoughts that do not end were cut off, so that there is no answer.
    """
    if "<think>" in output.rpartition("</think>")[2]:
        return ""
    text = _BOLD.sub("", output.rpartition("</think>")[2].translate(_LOOKALIKES))
    starts = (match.start() for match in _NEXT.finditer(text))
    return text[: next((start for start in starts if text[:start].strip()), len(text))]


def before_next_question(text: str, mark: re.Pattern[str]) -> str:
    """The text up to the first line that asks something once an answer was marked."""
    marked = mark.search(text)
    asks = _ASKS.search(text, marked.end()) if marked else None
    return text[: asks.start()] if asks else text
