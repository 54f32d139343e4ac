"""How the answer in an output is found and marked, by kind of task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fedsb.errors import InputError
from fedsb.tasks import choices
from fedsb.tasks.scoring import gsm8k, mathematics
from fedsb.tasks.scoring.math_judge import math_judge

Kind = Literal["exact", "gsm8k", "math", "choice"]


@dataclass(frozen=True)
class Checker:
    """gold(text): the answer in a data set's own response, None if it has none. extract(output): the answer
    in a model's output, None if it has none. same(answer, gold)."""

    gold: Callable[[str], str | None]
    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]

    def verdict(self, answer: str | None, gold: str) -> bool:
        """No answer is a wrong one."""
        return answer is not None and self.same(answer, gold)


EXPECTED = {
    "exact": "some text",
    "gsm8k": "a number behind ####",
    "math": "an answer in \\boxed{...}",
    "choice": "one of true/false, solution1/2, answer1..5, ending1..4, option1/2",
}
"""What a response must hold."""


@contextlib.contextmanager
def checker(kind: Kind, responses: Sequence[str], source: str) -> Iterator[tuple[Checker, list[str]]]:
    """The checker for these responses of a data set, and the right answer in each.

    Raises:
        InputError: a row has no answer, rows are of several choice families, or a library is missing.
    """
    with contextlib.ExitStack() as stack:
        finder = _finder(kind)
        golds = [_gold(finder, kind, text, source, n) for n, text in enumerate(responses, start=1)]
        if kind == "math":
            same = stack.enter_context(math_judge())
            yield Checker(mathematics.gold, mathematics.extract, partial(_math_same, same)), golds
        elif kind == "choice":
            extract = partial(choices.extract, choices=_family(golds, source))
            yield Checker(finder, extract, _equal), golds
        elif kind == "gsm8k":
            yield Checker(gsm8k.gold, gsm8k.extract, gsm8k.same), golds
        else:
            yield Checker(finder, str.strip, _equal), golds


def _finder(kind: Kind) -> Callable[[str], str | None]:
    every = [choice for family in choices.FAMILIES.values() for choice in family]
    finders: dict[Kind, Callable[[str], str | None]] = {
        "exact": str.strip,
        "gsm8k": gsm8k.gold,
        "math": mathematics.gold,
        "choice": partial(choices.extract, choices=every),
    }
    return finders[kind]


def _gold(find: Callable[[str], str | None], kind: Kind, response: str, source: str, number: int) -> str:
    found = find(response)
    if found is None:
        raise InputError(
            f"{source}: row {number} has no answer: expected {EXPECTED[kind]} in the response, found "
            f"{response[-60:]!r}; fix or remove the row, or check score and columns of the benchmark"
        )
    return found


def _family(golds: Sequence[str], source: str) -> tuple[str, ...]:
    found = {choices.family_of(gold) for gold in golds}
    if len(found) != 1:
        names = " and ".join(sorted(f"{family[0]}.." for family in found if family))
        raise InputError(
            f"{source}: expected one answer format, found {names}; make each a benchmark of its own"
        )
    family = found.pop()
    assert family is not None  # `choices.extract` finds nothing else
    return family


def _math_same(judge: Callable[[str, str], bool], answer: str, gold: str) -> bool:
    plain = mathematics.plainly_same(answer, gold)
    return judge(answer, gold) if plain is None else plain


def _equal(answer: str, gold: str) -> bool:
    return answer == gold
