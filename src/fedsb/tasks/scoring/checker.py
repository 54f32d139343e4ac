"""How the answer in an output is found and marked, by kind of task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Literal

from fedsb.errors import InputError
from fedsb.tasks.choices import FAMILIES, LETTERS, are_letters, family_of, option_texts
from fedsb.tasks.scoring import gsm8k, mathematics, multiple_choice
from fedsb.tasks.scoring.math_judge import math_judge

Kind = Literal["exact", "gsm8k", "math", "choice"]


@dataclass(frozen=True)
class Checker:
    """gold(text): the answer in a data set's own response, None if it has none. extract(output, prompt): the
    answer in a model's output, None if it has none; the prompt may list the choices. same(answer, gold)."""

    gold: Callable[[str], str | None]
    extract: Callable[[str, str], str | None]
    same: Callable[[str, str], bool]

    def verdict(self, answer: str | None, gold: str) -> bool:
        """No answer is a wrong one."""
        return answer is not None and self.same(answer, gold)


EXPECTED = {
    "exact": "some text",
    "gsm8k": "a number behind ####",
    "math": "an answer in \\boxed{...}",
    "choice": "one of true/false, solution1/2, answer1..5, ending1..4, option1/2 or a letter from A to J",
}
"""What a response must hold."""


@contextlib.contextmanager
def checker(kind: Kind, responses: Sequence[str], source: str) -> Iterator[tuple[Checker, list[str]]]:
    """The checker for these responses of a data set, and the right answer in each.

    Raises:
        InputError: a row has no answer, rows are of several choice families, or a library is missing.
    """
    gold = GOLDS[kind]
    golds = [_gold(gold, kind, text, source, n) for n, text in enumerate(responses, start=1)]
    with contextlib.ExitStack() as stack:
        if kind == "math":
            same = partial(_math_same, stack.enter_context(math_judge()))
            yield Checker(gold, lambda output, prompt: mathematics.extract(output), same), golds
        elif kind == "choice":
            yield Checker(gold, partial(_chosen, _family(golds, source)), eq), golds
        elif kind == "gsm8k":
            yield Checker(gold, lambda output, prompt: gsm8k.extract(output), gsm8k.same), golds
        else:
            yield Checker(gold, lambda output, prompt: output.strip(), eq), golds


def _gold_choice(response: str) -> str | None:
    names = [name for family in FAMILIES.values() if family != LETTERS for name in family]
    return multiple_choice.extract(response, LETTERS) or multiple_choice.extract(response, names)


GOLDS: dict[Kind, Callable[[str], str | None]] = {
    "exact": str.strip,
    "gsm8k": gsm8k.gold,
    "math": mathematics.gold,
    "choice": _gold_choice,
}


def _chosen(family: tuple[str, ...], output: str, prompt: str) -> str | None:
    """The choice in an output; of letters only those that the prompt lists, if it lists any."""
    options = option_texts(prompt, family)
    offers = tuple(options) if options and are_letters(family) else family
    return multiple_choice.extract(output, offers, options)


def _gold(gold: Callable[[str], str | None], kind: Kind, response: str, source: str, number: int) -> str:
    answer = gold(response)
    if answer is None:
        raise InputError(
            f"{source}: row {number} has no answer: expected {EXPECTED[kind]} in the response; "
            "fix or remove the row, or check score and columns of the benchmark"
        )
    return answer


def _family(golds: Sequence[str], source: str) -> tuple[str, ...]:
    families = {family for gold in golds if (family := family_of(gold))}
    if len(families) != 1:
        names = " and ".join(sorted(f"{family[0]}.." for family in families))
        raise InputError(
            f"{source}: expected one answer format, found {names}; make each a benchmark of its own"
        )
    return families.pop()


def _math_same(judge: Callable[[str, str], bool], answer: str, gold: str) -> bool:
    plain = mathematics.plainly_same(answer, gold)
    return judge(answer, gold) if plain is None else plain
