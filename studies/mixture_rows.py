"""Rows of several tasks in one file, with the column `source` that says whose each row is: what mixtures of
experts are trained on.

    python studies/mixture_rows.py classes OUT --rows 512         recipes/small/mixture-classes.yaml
    python studies/mixture_rows.py texts OUT --rows 512           recipes/small/mixture-texts.yaml
    python studies/mixture_rows.py seven OUT --rows 6000          recipes/paper/lora-mixer.yaml

Data sets come from the hub, or from files here: `--of sst2=FOLDER/train.jsonl,FOLDER/validation.jsonl`.
Leaves OUT/train.jsonl and OUT/test.jsonl, the tasks in turn, and OUT/test-NAME.jsonl of each task.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from fedsb.tasks.rows import read_rows

Row = dict[str, Any]
Shaped = Callable[[Row], Row | None]


class Source(NamedTuple):
    """One task: its training and its test rows, and what becomes of one; None leaves it out."""

    train: str
    test: str
    shaped: Shaped


def a_class(task: str, columns: tuple[str, ...], names: dict[Any, str]) -> Shaped:
    """One or two texts and a class that names its task, so that all tasks' classes are different ones."""

    def shaped(row: Row) -> Row | None:
        name = names.get(row["label"], row["label"])
        if name not in names.values():  # some rows of SNLI have no label
            return None
        texts = [row[column] for column in columns]
        return {"first": texts[0], "second": "".join(texts[1:]), "label": f"{task} {name}"}

    return shaped


def an_answer(asked: str, answer: str, names: dict[Any, str] | None = None) -> Shaped:
    """Question and answer by templates of a row's columns; `names` puts a label into words."""

    def shaped(row: Row) -> Row:
        named = row if names is None else {**row, "label": names[row["label"]]}
        return {"question": asked.format_map(named), "answer": answer.format_map(named)}

    return shaped


def a_choice(row: Row) -> Row:
    """A question with its lettered choices, as ARC and MedQA have them, and the letter of the right one."""
    choices = row.get("choices") or {"label": list(row["options"]), "text": list(row["options"].values())}
    lines = (f"{letter}) {text}" for letter, text in zip(choices["label"], choices["text"], strict=True))
    letter = row["answerKey"] if "answerKey" in row else row["answer_idx"]
    return {"question": "\n".join([row["question"], *lines]), "answer": letter}


def a_story(row: Row) -> Row | None:
    """How a story begins and how it goes on: two sentences, and the three after them."""
    sentences = [f"{sentence}." for sentence in " ".join(row["text"].split()).split(". ")]
    if len(sentences) < 6:
        return None
    return {"question": " ".join(sentences[:2]), "answer": " ".join(sentences[2:5])}


def a_meal(row: Row) -> Row:
    """E2E's pairs, by the names of the columns on the hub or in the original files."""
    asked = row["meaning_representation"] if "meaning_representation" in row else row["mr"]
    return {"question": asked, "answer": row["human_reference"] if "human_reference" in row else row["ref"]}


def glue(task: str, test: str, shaped: Shaped) -> Source:
    return Source(f"nyu-mll/glue:{task}@train", f"nyu-mll/glue:{task}@{test}", shaped)


MOODS, GRAMMAR = {0: "negative", 1: "positive"}, {0: "wrong", 1: "right"}
NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}
GSM8K = Source("openai/gsm8k:main@train", "openai/gsm8k:main@test", an_answer("{question}", "{answer}"))
ARC = "allenai/ai2_arc:ARC"
SETS: dict[str, dict[str, Source]] = {
    "classes": {
        "sst2": glue("sst2", "validation", a_class("sst2", ("sentence",), MOODS)),
        "cola": glue("cola", "validation", a_class("cola", ("sentence",), GRAMMAR)),
        "mrpc": glue("mrpc", "test", a_class("mrpc", ("sentence1", "sentence2"), {0: "other", 1: "same"})),
        "snli": Source(
            "stanfordnlp/snli@train", "stanfordnlp/snli@test", a_class("snli", ("premise", "hypothesis"), NLI)
        ),
    },
    "texts": {
        "stories": Source("roneneldan/TinyStories@train", "roneneldan/TinyStories@validation", a_story),
        "restaurants": Source("tuetschek/e2e_nlg@train", "tuetschek/e2e_nlg@validation", a_meal),
        "sums": GSM8K,
    },
    "seven": {
        "medqa": Source("GBaker/MedQA-USMLE-4-options@train", "GBaker/MedQA-USMLE-4-options@test", a_choice),
        "cola": glue(
            "cola", "validation", an_answer("Is this grammar right or wrong?\n{sentence}", "{label}", GRAMMAR)
        ),
        "sst2": glue("sst2", "validation", an_answer("Positive or negative?\n{sentence}", "{label}", MOODS)),
        "gsm8k": GSM8K,
        "arc-easy": Source(f"{ARC}-Easy@train", f"{ARC}-Easy@test", a_choice),
        "arc-challenge": Source(f"{ARC}-Challenge@train", f"{ARC}-Challenge@test", a_choice),
        "code": Source(
            "google-research-datasets/mbpp@train",
            "google-research-datasets/mbpp@test",
            an_answer("{text}", "{code}"),
        ),
    },
}


def rows_of(place: str) -> list[Row]:
    """Rows of the hub or of a file; of a .txt the texts between end marks, as TinyStories is given away."""
    if not place.endswith(".txt"):
        return read_rows(place)
    texts = Path(place).read_text(encoding="utf-8").split("<|endoftext|>")
    return [{"text": text.strip()} for text in texts if text.strip()]


def drawn(place: str, name: str, shaped: Shaped, count: int, seed: int) -> list[Row]:
    """So many rows of one task at random, fewer where there are fewer."""
    made = [row for row in map(shaped, rows_of(place)) if row is not None]
    random.Random(f"{seed} {name}").shuffle(made)
    return [{**row, "source": name} for row in made[:count]]


def two_parts(source: Source, name: str, rows: int, test: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and test rows; of one place the test rows first."""
    if source.train != source.test:
        return (
            drawn(source.train, name, source.shaped, rows, seed),
            drawn(source.test, name, source.shaped, test, seed),
        )
    both = drawn(source.train, name, source.shaped, rows + test, seed)
    return both[test:], both[:test]


def in_turn(tasks: list[list[Row]]) -> list[Row]:
    """One row of each task after the other, so that the first rows are of all."""
    return [row for row in chain.from_iterable(zip_longest(*tasks)) if row is not None]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.name}: {len(rows)} rows")


def main(arguments: list[str] | None = None) -> None:
    """Read, draw and write one of SETS."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", choices=SETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=512, help="of each task")
    parser.add_argument("--test", type=int, default=300, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", action="append", default=[], metavar="NAME=TRAIN,TEST")
    asked = parser.parse_args(arguments)
    sources = dict(SETS[asked.tasks])
    for given in asked.of:
        name, _, places = given.partition("=")
        train, _, test = places.partition(",")
        if name not in sources or not train:
            parser.error(f"--of: expected NAME=TRAIN,TEST with one of {', '.join(sources)}, found {given!r}")
        sources[name] = sources[name]._replace(train=train, test=test or train)
    parts = {n: two_parts(source, n, asked.rows, asked.test, asked.seed) for n, source in sources.items()}
    asked.out.mkdir(parents=True, exist_ok=True)
    write(asked.out / "train.jsonl", in_turn([train for train, _ in parts.values()]))
    write(asked.out / "test.jsonl", in_turn([test for _, test in parts.values()]))
    for name, (_, test) in parts.items():
        write(asked.out / f"test-{name}.jsonl", test)


if __name__ == "__main__":
    main()
