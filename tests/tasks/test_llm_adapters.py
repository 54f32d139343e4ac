"""The hub's rows in LLM-Adapters' form, held against rows written by hand and against its own files."""

import json
import re
from pathlib import Path

import pytest

from fedsb.errors import InputError
from fedsb.tasks.commonsense import prepare

HUB = {
    "boolq": {"question": "is the sky blue", "answer": True, "passage": "The sky is blue."},
    "piqa": {"goal": "Open a tin.", "sol1": "Use a spoon.", "sol2": "Use an opener.", "label": 1},
    "siqa": {
        "context": "Kim fell.",
        "question": "How is Kim?",
        "answerA": "hurt",
        "answerB": "proud",
        "answerC": "asleep",
        "label": "1",
    },
    "hellaswag": {
        "activity_label": "Baking",
        "ctx_a": "A woman stirs.",
        "ctx_b": "she",
        "endings": ["sings.", "stirs on.", "flies.", "sleeps."],
        "label": "1",
    },
    "winogrande": {
        "sentence": "Ian ate, since _ was hungry.",
        "option1": "Ian",
        "option2": "Dennis",
        "answer": "1",
    },
    "arc": {
        "question": "What is warm?",
        "choices": {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    "openbookqa": {
        "question_stem": "Fire is",
        "choices": {"text": ["cold", "wet", "hot", "blue"], "label": ["1", "2", "3", "4"]},
        "answerKey": "3",
    },
}
EXPECTED = {
    "boolq": (
        "Please answer the following question with true or false, question: is the sky blue?\n\n"
        "Answer format: true/false",
        "true",
        "true",
    ),
    "piqa": (
        "Please choose the correct solution to the question: Open a tin.\n\nSolution1: Use a spoon.\n\n"
        "Solution2: Use an opener.\n\nAnswer format: solution1/solution2",
        "solution2",
        "solution",
    ),
    "siqa": (
        "Please choose the correct answer to the question: Kim fell. How is Kim?\n\nAnswer1: hurt "
        "Answer2: proud Answer3: asleep\n\nAnswer format: answer1/answer2/answer3",
        "answer1",
        "answer",
    ),
    "hellaswag": (
        "Please choose the correct ending to complete the given sentence: Baking: A woman stirs. she\n\n"
        "Ending1: sings. Ending2: stirs on. Ending3: flies. Ending4: sleeps.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "ending2",
        "ending",
    ),
    "winogrande": (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "Ian ate, since _ was hungry.\n\nOption1: Ian Option2: Dennis Answer format: option1/option2",
        "option1",
        "option",
    ),
    "arc": (
        "Please choose the correct answer to the question: What is warm?\n\nAnswer1: ice Answer2: fire "
        "Answer3: snow\n\nAnswer format: answer1/answer2/answer3",
        "answer2",
        "answer",
    ),
    "openbookqa": (
        "Please choose the correct answer to the question: Fire is\n\nAnswer1: cold Answer2: wet "
        "Answer3: hot Answer4: blue\n\nAnswer format: answer1/answer2/answer3/answer4",
        "answer3",
        "answer",
    ),
}


@pytest.mark.parametrize("kind", list(HUB))
def test_a_row_of_the_hub(kind):
    instruction, answer, form = EXPECTED[kind]
    assert prepare(kind, [HUB[kind]], "x") == [
        {
            "instruction": instruction,
            "input": "",
            "output": f"the correct answer is {answer}",
            "answer": answer,
            "format": form,
        }
    ]


def test_rows_in_their_form_get_the_format_alone():
    row = {
        "instruction": EXPECTED["piqa"][0],
        "output": "the correct answer is solution2",
        "answer": "solution2",
    }
    assert prepare("llm-adapters", [row], "x") == [{**row, "format": "solution"}]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "boolq",
            {"question": ...},
            r"x: row 1 is not one of boolq: it has no 'question'; the row's columns are answer",
        ),
        ("piqa", {"label": -1}, r"row 1 is not one of piqa: a value is none of its format's"),
        ("arc", {"answerKey": "E"}, r"row 1 is not one of arc: a value"),
        ("hellaswag", {"label": ""}, r"row 1 is not one of hellaswag"),
    ],
)
def test_rows_of_something_else_are_refused(kind, change, message):
    row = {**HUB[kind], **change}
    with pytest.raises(InputError, match=message):
        prepare(kind, [{k: v for k, v in row.items() if v is not ...}], "x")


TAKEN_APART = {
    "boolq/test": ("boolq", r"question: (?P<question>.*)\?\n\nAnswer format: true/false"),
    "piqa/test": (
        "piqa",
        r"question: (?P<goal>.*)\n\nSolution1: (?P<sol1>.*)\n\nSolution2: (?P<sol2>.*)\n\nAnswer f",
    ),
    "winogrande/train": (
        "winogrande",
        r"sentence: (?P<sentence>.*)\n\nOption1: (?P<option1>.*) Option2: (?P<option2>.*) Answer f",
    ),
    "ARC-Easy/test": ("arc", r"question: (?P<question>.*)\n\n(?P<listed>Answer1: .*)\n\nAnswer format"),
    "openbookqa/test": (
        "openbookqa",
        r"question: (?P<question_stem>.*)\n\n(?P<listed>Answer1: .*)\n\nAnswer format",
    ),
}


@pytest.mark.shared
@pytest.mark.parametrize("file", list(TAKEN_APART))
def test_its_own_files_come_out_of_their_parts(file, shared: Path):
    """An instruction taken apart into the hub's columns and put together again is itself."""
    kind, pattern = TAKEN_APART[file]
    rows = json.loads((shared / "data/commonsense" / f"{file}.json").read_text())[:300]
    for row in rows:
        found = re.search(pattern, row["instruction"], re.DOTALL).groupdict()
        number = re.sub(r"\D", "", row["answer"])
        if "listed" in found:
            texts = re.split(r" ?Answer\d: ", found.pop("listed"))[1:]
            keys = [str(i) for i in range(1, len(texts) + 1)]
            found |= {"choices": {"text": texts, "label": keys}, "answerKey": number}
        found |= {
            "boolq": {"answer": row["answer"] == "true"},
            "piqa": {"label": int(number or 1) - 1},
            "winogrande": {"answer": number},
        }.get(kind, {})
        made = prepare(kind, [found], "x")[0]
        assert {key: made[key] for key in row} == row
