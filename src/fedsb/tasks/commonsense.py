"""The eight commonsense data sets in LLM-Adapters' form (Hu et al. 2023, arXiv 2304.01933).

Rows of the hub's own data sets become `instruction`, `input`, `output` and `answer`, as in its training
file commonsense_170k. SIQA's form follows the others': no file of theirs was at hand to hold it against.
`format` is added, which tells apart what rows do not name: the answer format, and so the data set but for
SIQA, ARC and OpenBookQA, which share one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fedsb.config.labels import label_name
from fedsb.errors import InputError
from fedsb.tasks.choices import family_of, offered
from fedsb.tasks.rows import is_missing, like, place
from fedsb.tasks.task import Row


def prepare(kind: str, rows: Sequence[Row], source: str) -> list[Row]:
    """The rows of data set `kind` (a key of PREPARATIONS) in LLM-Adapters' form.

    Raises:
        InputError: a row lacks a column of that data set, or its label.
    """
    return [_prepared(kind, row, source, number) for number, row in enumerate(rows, start=1)]


def _prepared(kind: str, row: Row, source: str, number: int) -> Row:
    try:
        values = {column: value for column, value in row.items() if not is_missing(value)}
        return like(row, PREPARATIONS[kind](values))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else "a value is none of its format's"
        raise InputError(
            f"{place(row, source, number)} is not one of {kind}: {fault}; the row's columns are "
            f"{', '.join(map(str, row))}. Check data.prepare, or the prepare of the benchmark"
        ) from error


def _as_it_is(row: Row) -> dict[str, object]:
    instruction, answer = str(row["instruction"]), str(row["answer"])
    choices = family_of(answer) or offered(instruction)
    return {**row, "format": choices[0].rstrip("1")}


def _made(instruction: str, answer: str, choices: Sequence[str]) -> dict[str, object]:
    if answer not in choices:
        raise ValueError("no label")
    row = {
        "instruction": instruction,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }
    return _as_it_is(row)


def _boolq(row: Row) -> dict[str, object]:
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return _made(f"{question}\n\nAnswer format: true/false", label_name(row["answer"]), ("true", "false"))


def _piqa(row: Row) -> dict[str, object]:
    choices = _numbered("solution", 2)
    asked = f"Please choose the correct solution to the question: {row['goal']}"
    listed = f"Solution1: {row['sol1']}\n\nSolution2: {row['sol2']}"
    return _made(f"{asked}\n\n{listed}\n\n{_format(choices)}", f"solution{_int(row['label']) + 1}", choices)


def _siqa(row: Row) -> dict[str, object]:
    answers = [row["answerA"], row["answerB"], row["answerC"]]
    return _question(f"{row['context']} {row['question']}", answers, _int(row["label"]) - 1)


def _hellaswag(row: Row) -> dict[str, object]:
    endings: Any = row["endings"]
    choices = _numbered("ending", len(endings))
    start = f"{row['activity_label']}: {row['ctx_a']} {row.get('ctx_b', '')}".rstrip()
    asked = f"Please choose the correct ending to complete the given sentence: {start}"
    listed = _listed("Ending", endings)
    return _made(f"{asked}\n\n{listed}\n\n{_format(choices)}", f"ending{_int(row['label']) + 1}", choices)


def _winogrande(row: Row) -> dict[str, object]:
    choices = _numbered("option", 2)
    asked = "Please choose the correct answer to fill in the blank to complete the given sentence:"
    listed = _listed("Option", (row["option1"], row["option2"]))
    return _made(
        f"{asked} {row['sentence']}\n\n{listed} {_format(choices)}", f"option{row['answer']}", choices
    )


def _arc(row: Row) -> dict[str, object]:
    offers: Any = row["choices"]
    return _question(str(row["question"]), offers["text"], list(offers["label"]).index(row["answerKey"]))


def _openbookqa(row: Row) -> dict[str, object]:
    return _arc({**row, "question": row["question_stem"]})


def _question(question: str, answers: Sequence[object], right: int) -> dict[str, object]:
    choices = _numbered("answer", len(answers))
    asked = f"Please choose the correct answer to the question: {question}"
    return _made(
        f"{asked}\n\n{_listed('Answer', answers)}\n\n{_format(choices)}", f"answer{right + 1}", choices
    )


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{i}" for i in range(1, count + 1))


def _listed(word: str, texts: Sequence[object]) -> str:
    return " ".join(f"{word}{i}: {text}" for i, text in enumerate(texts, start=1))


def _format(choices: Sequence[str]) -> str:
    return f"Answer format: {'/'.join(choices)}"


def _int(value: object) -> int:
    return int(str(value))


PREPARATIONS: dict[str, Callable[[Row], dict[str, object]]] = {
    "llm-adapters": _as_it_is,
    "boolq": _boolq,
    "piqa": _piqa,
    "siqa": _siqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc": _arc,
    "openbookqa": _openbookqa,
}
