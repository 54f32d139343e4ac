"""The answer checkers against cases labelled by hand: cases/*.yaml, wrong, cut off and adversarial ones."""

import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsb.errors import InputError
from fedsb.tasks import choices
from fedsb.tasks.scoring import gsm8k, mathematics, multiple_choice
from fedsb.tasks.scoring.checker import checker
from fedsb.tasks.scoring.math_judge import math_judge

CASES = Path(__file__).parent / "cases"


@cache
def cases(name: str) -> list[Any]:
    table = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    return [pytest.param(case, id=f"{n}:{case['output'][:30]}") for n, case in enumerate(table)]


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("math_verify", reason="needs math-verify: pip install 'fedsb[eval]'")
    with math_judge() as same:
        same("1", "2")  # the process is up
        yield same


def test_there_are_as_many_cases_as_were_asked_for():
    assert len(cases("mathematics")) >= 180
    assert len(cases("gsm8k")) >= 150
    assert len(cases("choices")) >= 150
    golds = {choices.family_of(case.values[0]["gold"]) for case in cases("choices")}
    assert golds == set(choices.FAMILIES.values())
    for name in ("mathematics", "gsm8k", "choices"):
        verdicts = [case.values[0]["correct"] for case in cases(name)]
        assert 0.3 < sum(verdicts) / len(verdicts) < 0.7


@pytest.mark.parametrize("case", cases("gsm8k"))
def test_gsm8k(case):
    answer = gsm8k.extract(case["output"])
    assert (answer is not None and gsm8k.same(answer, case["gold"])) is case["correct"], answer


@pytest.mark.parametrize("case", cases("choices"))
def test_choices(case):
    with checker("choice", [case["gold"]], "x") as (marker, golds):
        answer = marker.extract(case["output"], case.get("prompt", ""))
        assert marker.verdict(answer, golds[0]) is case["correct"], answer


@pytest.mark.parametrize("case", cases("mathematics"))
def test_mathematics(case, judge):
    answer = mathematics.extract(case["output"])
    plain = mathematics.plainly_same(answer, case["gold"]) if answer is not None else False
    verdict = judge(answer, case["gold"]) if plain is None else plain
    assert verdict is (case["correct"] != ("known_miss" in case)), answer


def test_a_formula_that_hangs_counts_as_wrong_and_the_next_is_judged():
    pytest.importorskip("math_verify", reason="needs math-verify: pip install 'fedsb[eval]'")
    with math_judge(timeout_seconds=3.0) as judge:
        began = time.monotonic()
        assert not judge("9^{9^{9^{9}}}", "7")
        assert time.monotonic() - began < 70  # the process's start is in it
        assert judge("\\frac{2}{4}", "\\frac{1}{2}")


def test_the_judge_works_outside_the_main_thread(judge):
    verdicts: list[bool] = []
    thread = threading.Thread(
        target=lambda: verdicts.extend((judge("0.5", "\\frac12"), judge("0.4", "\\frac12")))
    )
    thread.start()
    thread.join()
    assert verdicts == [True, False]


def test_without_math_verify_there_is_a_cure(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fedsb\[eval\]'"), math_judge():
        pass


@pytest.mark.parametrize(
    ("piece", "answers"),
    [
        ("1+", ("1", None, None)),
        ("18 or ", ("18", None, None)),
        ("\n", (None, None, None)),
        ("(B) or ", (None, None, "B")),
        ("\\boxed{", (None, None, None)),
        ("$x$, ", (None, None, None)),
        ("A. ", (None, "A", "A")),
    ],
)
def test_long_outputs_are_read_at_once(piece, answers):
    """The suite would not end if a pattern tried all ways to split such a text."""
    output = "The answer is " + piece * 4000
    number, formula, choice = answers
    assert gsm8k.extract(output) == number
    assert formula is None or mathematics.extract(output) == formula
    assert multiple_choice.extract(output, choices.LETTERS) == choice


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Q\nA. dry\nB. wet\nAnswer:", {"A": "dry", "B": "wet"}),
        ("Q (A) dry (B) wet (C) oily\nAnswer: ", {"A": "dry", "B": "wet", "C": "oily"}),
        ("Q\nA) one\nB) two\nB is right\n\nQ\nA) dry\nB) wet\n", {"A": "dry", "B": "wet"}),
        ("In the U.S. A man asks: B or C?", {}),
        ("A. alone", {}),
        ("", {}),
    ],
)
def test_options_are_read_from_a_prompt(prompt, expected):
    assert choices.option_texts(prompt, choices.LETTERS) == expected


# Gold answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9 * 2 = 18\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### -3", "-3"),
        ("The end: 18", None),
        ("####", None),
    ],
)
def test_gsm8k_gold(text, expected):
    assert gsm8k.gold(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        (" ", None),
        ("\\boxed{}", None),
    ],
)
def test_math_gold(text, expected):
    assert mathematics.gold(text) == expected


def test_offered_choices():
    prompt = "... Answer1: a Answer2: b\n\nAnswer format: answer1/answer2\n\n### Response:\n"
    assert choices.offered(prompt) == ("answer1", "answer2")
    assert choices.offered("nothing") == ()


def test_checker_marks_a_data_set():
    with checker("gsm8k", ["#### 1", "2 + 3 = 5\n#### 5"], "test.jsonl") as (marker, golds):
        assert golds == ["1", "5"]
        assert [
            marker.verdict(marker.extract(o, ""), g) for o, g in zip(["#### 1.0", "?"], golds, strict=True)
        ] == [True, False]
    with checker("choice", ["the correct answer is ending2"], "x.json") as (marker, golds):
        assert golds == ["ending2"]
        assert marker.extract("ending2", "") == "ending2"
        assert marker.extract("true", "") is None
    with checker("exact", [" a b "], "x.json") as (marker, golds):
        assert marker.verdict(marker.extract("a b\n", ""), golds[0])


@pytest.mark.parametrize(
    ("kind", "responses", "message"),
    [
        (
            "gsm8k",
            ["#### 1", "It is 18."],
            r"test\.jsonl: row 2 has no answer: expected a number behind ####",
        ),
        ("choice", ["none"], r"row 1 has no answer: expected one of true/false"),
        (
            "choice",
            ["the correct answer is true", "answer1"],
            r"expected one answer format, found answer1\.\. and true",
        ),
        ("math", ["\\boxed{}"], r"row 1 has no answer"),
    ],
)
def test_rows_without_an_answer_are_named(kind, responses, message):
    with pytest.raises(InputError, match=message), checker(kind, responses, "test.jsonl"):
        pass
