"""The choice that an output settles on: by its name (answer2, true), its letter, or the option's text."""

import re
from collections.abc import Mapping, Sequence

from fedsb.tasks.choices import are_letters, name_pattern
from fedsb.tasks.scoring.answer_text import DENIES, answer_text
from fedsb.tasks.scoring.mathematics import boxed

_SAYS = re.compile(
    r"\b(?:answer|(?:correct|right|best) (?:option|choice))\s*(?:is\b\s*:?|:|-\s)"
    r"|^\W*(?:final\s+)?answer\W*\n|####",
    re.IGNORECASE | re.MULTILINE,
)
_LEADS = re.compile(
    r"[\s\"'`*:_$\[]*(?:the\s+)?(?:(?:option|choice|letter)\s+(?=\W?[a-j]\b))?", re.IGNORECASE
)
_JOINS = re.compile(
    r"[\s)\].:\"'*]*(?:,|/|&|\bor\b|\band\b)\s*(?:(?:or|and)\b)?\s*(?:option\s+)?", re.IGNORECASE
)
_OR = re.compile(r"(?:\bor|/)\s*(?:the\s+|option\s+)?$", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_MARK = re.compile(r".?\s*[.):]")
_DIRECT_LETTER = re.compile(
    r"[(\[][A-Ja-j][)\]]|(?<![\w'])(?:[A-Ja-j](?=\s*(?:[.):,\]*/&;]|[\"'](?!\w)|\n|\Z))|[B-HJ](?![\w'-])"
    r"|[AI](?=[ ]+(?:because|since|as|for|and|or|is)\b))"
)
_NAMED_LETTER = re.compile(
    r"[(\[][A-Ja-j][)\]]|\A[\s\"']*(?:[A-Ja-j](?=[.):]|[\"'](?!\w)|\s*\Z|\s-)|[A-HJ](?=,))"
    r"|(?<!\w)[A-J](?=[.):](?:\s|\Z)|\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b)"
    r"|\b(?:[Oo]ption|[Cc]hoice|answer|is|be|say|choose|pick|select|with)[:\s]+[A-J](?=[,;!]|\s*\Z)"
    r"|\A\s*(?:[Oo]ption|[Cc]hoice)[:\s]+[A-Ja-j]\b"
)
"""Stricter than the one above: "a" and "I" are words, "vitamin C" has a letter."""


def extract(output: str, choices: Sequence[str], options: Mapping[str, str] | None = None) -> str | None:
    """The choice an output settles on, or None where it names none or leaves it open.

    What stands in the last box, or right behind the first "answer is", counts, unless another choice is
    joined to it (by a comma, a slash, "or", "and") or listed below it. Where something else stands there, or
    no answer is marked, the sentence (the first line) must name one single choice and deny nothing, or be an
    option's text and no more. Upper case of names and a blank before the digit do not matter.

    Args:
        options: the text that the question gives each choice, see `choices.option_texts`.
    """
    line, marked = _answer_line(answer_text(output))
    direct, named = _patterns(choices)
    sentence = re.split(r"\n|\.(?=\s|$)" if marked else "\n", line, maxsplit=1)[0]
    if choice := _by_text((sentence, line.split("\n")[0]), options or {}):
        return choice
    first = direct.match(line, _LEADS.match(line).end())  # type: ignore[union-attr]  # it matches nothing too
    if first and (_joined(direct, line, first) or _lists(direct, line, first)):
        return None
    if first and marked:
        return _name(first, choices)
    names = {_name(match, choices) for match in named.finditer(sentence)}
    denied = DENIES.search(sentence) and not (first and are_letters(choices))
    return names.pop() if len(names) == 1 and not denied else None


def _answer_line(text: str) -> tuple[str, bool]:
    """(the text from the answer on, whether something marks it as the answer)."""
    if box := boxed(text):
        return _TEXT.sub(r"\1", box), True
    text = _TEXT.sub(r"\1", text)
    said = _SAYS.search(text)
    return (text[said.end() :] if said else text).lstrip(), said is not None


def _patterns(choices: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What names a choice where an answer must stand, and what does anywhere in a sentence.

    A choice is a word of its own; "Answer 1" is answer1, answer12 is not.
    """
    if are_letters(choices):
        return _DIRECT_LETTER, _NAMED_LETTER
    name = re.compile(rf"(?<!\w)(?:{'|'.join(map(name_pattern, choices))})(?!\w)", re.IGNORECASE)
    return name, name


def _name(match: re.Match[str], choices: Sequence[str]) -> str | None:
    """The choice that was matched; None of a letter that is not offered."""
    name = _bare(match)[-1] if are_letters(choices) else _bare(match)
    return next((choice for choice in choices if choice.casefold() == name), None)


def _joined(direct: re.Pattern[str], line: str, first: re.Match[str]) -> bool:
    """Whether another choice is joined to the first: "answer1, answer2", "(A) dry or (B) wet"."""
    joint = _JOINS.match(line, first.end())
    second = direct.match(line, joint.end()) if joint else None
    end = line.find("\n", first.end())
    others = direct.finditer(line, first.end(), end if end >= 0 else len(line))
    alternatives = [second] if second else []
    alternatives += [
        other for other in others if _OR.search(line, max(first.end(), other.start() - 20), other.start())
    ]
    return any(_bare(other) != _bare(first) for other in alternatives)


def _lists(direct: re.Pattern[str], line: str, first: re.Match[str]) -> bool:
    """Whether the options are repeated: "A. dry" and in the next line "B. wet"."""
    lines = [part.strip() for part in line[first.start() :].split("\n") if part.strip()]
    starts = [
        start for part in lines[:2] if (start := direct.match(part)) and _MARK.match(part, start.end() - 1)
    ]
    return len({_bare(start) for start in starts}) > 1


def _bare(match: re.Match[str]) -> str:
    return re.sub(r"[\s()\[\]\"']", "", match[0]).casefold()


def _by_text(answers: Sequence[str], options: Mapping[str, str]) -> str | None:
    """The one choice whose text an answer is."""
    said = {_plain(answer) for answer in answers}
    names = [choice for choice, text in options.items() if _plain(text) in said]
    return names[0] if len(names) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"^(?:the|an?) ", "", " ".join(text.casefold().split()).strip(" .,:;!\"'*`$()"))
