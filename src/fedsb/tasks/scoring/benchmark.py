"""One benchmark: its rows as prompts of the task's own template, its right answers, its marks.

rows -> examples (Task.encode, as in training) -> outputs (an engine) -> answers -> Measurement + records
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fedsb.config import RunConfig
from fedsb.config.sections.evaluation import BenchmarkConfig
from fedsb.config.sections.task import AnswerSection
from fedsb.tasks import Example, Row, Task
from fedsb.tasks.choices import family_of, name_pattern, offered, option_texts
from fedsb.tasks.generate import Decoding
from fedsb.tasks.scoring.checker import Checker, checker
from fedsb.tasks.scoring.texts import check_libraries, measure_texts
from fedsb.tasks.sources import benchmark_rows
from fedsb.tasks.task import Measurement, evaluating

Record = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """A benchmark ready to be asked. Made, and its input checked, before any model is loaded.

    examples: one per question. expected: the right answer of each; for `text` its references.
    """

    name: str
    benchmark: BenchmarkConfig
    rows: list[Row]
    examples: list[Example]
    expected: list[Any]
    checker: Checker | None

    @property
    def generates(self) -> bool:
        """Whether texts are to be generated."""
        return self.benchmark.score != "likelihood"

    def warning(self, max_length: int) -> str | None:
        """A sentence if training.max_length cuts what is asked; None if it does not."""
        tokens = [example["tokens"] for example in self.examples]
        cut = sum(t.cut_questions if self.generates else t.length > max_length for t in tokens)
        return (
            f"training.max_length {max_length} cuts the beginning of {cut} of the {len(tokens)} questions of "
            f"{self.name}; raise it"
            if cut
            else None
        )


def questions_of(name: str, config: RunConfig, task: Task, stack: contextlib.ExitStack) -> Questions:
    """Read a benchmark and find the right answers in its rows.

    Args:
        stack: closes what the marking needs.

    Raises:
        InputError: a file, a column or an answer is missing, or a library.
    """
    benchmark = config.evaluation.benchmarks[name]
    rows = benchmark_rows(benchmark, name)
    examples = task.encode(rows, benchmark.data)
    responses = [str(example["response"]) for example in examples]
    if benchmark.score == "text":
        check_libraries()
        firsts, references = _grouped(examples)
        distinct = [rows[i] for i in firsts], [examples[i] for i in firsts]
        return Questions(name, benchmark, *distinct, references, None)
    kind = "choice" if benchmark.score == "likelihood" else benchmark.score
    marker, golds = stack.enter_context(checker(kind, responses, benchmark.data))
    return Questions(name, benchmark, rows, examples, golds, marker)


def _grouped(examples: Sequence[Example]) -> tuple[list[int], list[list[str]]]:
    """(the first example of each prompt, all responses to it)."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, example in enumerate(examples):
        places.setdefault(tuple(example["prompt_ids"]), []).append(i)
    references = [[examples[i]["response"] for i in indices] for indices in places.values()]
    return [indices[0] for indices in places.values()], references


def decoding_of(
    config: RunConfig, benchmark: BenchmarkConfig | None = None, *, ends: tuple[int, ...]
) -> Decoding:
    """How answers are generated, to a benchmark's questions or to others; `ends`: the task's."""
    generation, task = config.evaluation.generation, config.task
    assert isinstance(task, AnswerSection)  # RunConfig has seen to it
    return Decoding(
        max_new_tokens=(benchmark and benchmark.max_new_tokens) or task.max_new_tokens,
        stop=tuple(generation.stop),
        ends=ends,
        seed=config.seed,
        **generation.model_dump(exclude={"engine", "stop"}),
    )


def marked(
    asked: Questions, outputs: Sequence[str], prompts: Sequence[str]
) -> tuple[Measurement, list[Record]]:
    """What the outputs are worth, and a record per question: prompt, output, extracted, expected, correct."""
    if asked.checker is None:
        texts = [output.strip() for output in outputs]
        records = _records(prompts, outputs, texts, asked.expected, [None] * len(texts))
        return measure_texts(texts, asked.expected), records
    answers = [asked.checker.extract(*pair) for pair in zip(outputs, prompts, strict=True)]
    pairs = zip(answers, asked.expected, strict=True)
    correct = [asked.checker.verdict(answer, gold) for answer, gold in pairs]
    return share_of(correct), _records(prompts, outputs, answers, asked.expected, correct)


def _records(*columns: Sequence[Any]) -> list[Record]:
    names = ("prompt", "output", "extracted", "expected", "correct")
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def share_of(correct: Sequence[bool]) -> Measurement:
    """Accuracy."""
    hits = np.asarray(correct, dtype=np.float64)
    return Measurement(len(hits), lambda at: {"accuracy": float(hits[at].mean())}, frozenset({"accuracy"}))


def likeliest(
    asked: Questions,
    config: RunConfig,
    task: Task,
    model: nn.Module,
    prompts: Sequence[str],
    report: Callable[[int], None],
) -> list[str]:
    """The choice in whose place in the response the model finds the response likeliest, per question.

    Choices are those that the prompt offers behind "Answer format:", else lists, else the answer's family.
    """
    offers = [_offers(*pair) for pair in zip(prompts, asked.expected, strict=True)]
    flat = [(q, choice) for q, choices in enumerate(offers) for choice in choices]
    column = config.task.response  # type: ignore[attr-defined]  # causal-lm
    rows = [_answering(asked.rows[q], column, asked.expected[q], choice) for q, choice in flat]
    examples = task.encode(rows, asked.benchmark.data)
    best: dict[int, tuple[float, str]] = {}
    size, lengths = config.evaluation.batch_size, [len(example["input_ids"]) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        at = order[start : start + size]
        for i, total in zip(at, _nll(task, model, [examples[i] for i in at]), strict=True):
            question, choice = flat[i]
            best[question] = min(best.get(question, (total, choice)), (total, choice))
        report(len({flat[i][0] for i in at}))
    return [best[q][1] for q in range(len(offers))]


def _offers(prompt: str, gold: str) -> tuple[str, ...]:
    family = family_of(gold) or ()
    listed = option_texts(prompt, family)
    return offered(prompt) or (tuple(listed) if gold in listed else family)


def _answering(row: Row, column: str, gold: str, choice: str) -> Row:
    """The row as it would be if `choice` were right."""
    text = str(row[column])
    *_, place = re.finditer(rf"(?<!\w){name_pattern(gold)}(?!\w)", text, re.IGNORECASE)
    return {**row, column: f"{text[: place.start()]}{choice}{text[place.end() :]}"}


def _nll(task: Task, model: nn.Module, examples: Sequence[Example]) -> list[float]:
    batch = task.collate(examples)
    with evaluating(model):
        counts = (batch["labels"] != -100).sum(dim=1)
        means = task.losses(model, batch).double().cpu()
    return [float(x) for x in means * counts]


def check_benchmarks(config: RunConfig, task: Task) -> tuple[int, list[str]]:
    """Look at everything that benchmarks need but the model: how many questions there are, and warnings.

    Raises:
        InputError: as `questions_of`.
    """
    with contextlib.ExitStack() as stack:
        asked = [questions_of(name, config, task, stack) for name in config.evaluation.benchmarks]
    warnings = [questions.warning(config.training.tokens) for questions in asked]
    return sum(len(questions.examples) for questions in asked), [text for text in warnings if text]
