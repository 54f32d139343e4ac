"""Functions of a program that a run calls: after rounds, after steps, and to score predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from fedsb.errors import InputError
from fedsb.report.metrics import KNOWN
from fedsb.report.progress import Progress
from fedsb.runner.finished_model import FinishedModel
from fedsb.runner.predict import records_of
from fedsb.runner.prepared import Prepared
from fedsb.tasks import Row
from fedsb.tasks.sources import run_rows
from fedsb.tasks.task import Example, Measurement

OnRound = Callable[[dict[str, Any]], object]
Metric = Callable[[list[dict[str, Any]], list[Row]], float]


class Step(NamedTuple):
    """One step of one client's optimizer. `examples`: how many of the round it has trained on so far."""

    round: int
    client: int
    examples: int


OnStep = Callable[[Step], object]


@dataclass(frozen=True)
class Hooks:
    """What is called, by when.

    Attributes:
        on_round: after each round, with its line of metrics.jsonl; for round 0 too, which is before training.
        on_step: after each step of a client in this process.
        metrics: name -> a function of what the model says of the test rows (as `predict` gives it) and of
            these rows, which gives a number; asked wherever the model is scored on the test rows.
    """

    on_round: OnRound | None = None
    on_step: OnStep | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be called, and names that are taken.

        Raises:
            InputError: names it.
        """
        for name, function in {"on_round": self.on_round, "on_step": self.on_step, **self.metrics}.items():
            if function is not None and not callable(function):
                raise InputError(f"{name}: expected a function, found {type(function).__name__}")
        for name in self.metrics:
            if name in KNOWN or not name.isidentifier():
                raise InputError(f"metrics: the name {name!r} is taken or no plain word; choose another")

    def watching(self, progress: Progress) -> Progress:
        """A watcher that tells these functions, and `progress`."""
        return (
            progress if not (self.on_round or self.on_step) else Told(progress, self.on_round, self.on_step)
        )

    def measuring(self, prepared: Prepared) -> Prepared:
        """The run with these metrics beside its task's own."""
        if not self.metrics or not prepared.rules.on_test_rows:
            return prepared
        data = prepared.data
        rows = list(run_rows(prepared.config, kept=data.split).test)
        finished = FinishedModel(prepared.config, data.tokenizer, data.task, prepared.base.model)
        task = replace(data.task, measure=_measured(self.metrics, finished, data.test, rows))
        return replace(prepared, data=replace(data, task=task))


def _measured(
    metrics: Mapping[str, Metric], finished: FinishedModel, test: list[Example], rows: list[Row]
) -> Callable[..., list[Measurement]]:
    """The task's `measure`, and of the test examples these metrics."""

    def measure(model: Any, examples: Sequence[Example], **arguments: Any) -> list[Measurement]:
        found = finished.task.measure(model, examples, **arguments)
        if examples is not test:
            return found
        records = records_of(replace(finished, model=model), examples, lambda more: None)

        def values(at: np.ndarray) -> dict[str, float]:
            said, asked = [records[i] for i in at], [rows[i] for i in at]
            return {name: _value(name, function(said, asked)) for name, function in metrics.items()}

        return [*found, Measurement(len(examples), values)]

    return measure


def _value(name: str, value: object) -> float:
    if isinstance(value, int | float | np.number) and math.isfinite(value):
        return float(value)
    raise InputError(f"metrics: {name} gave {value!r:.100}; expected a finite number")


class Told:
    """Tells a watcher, and the functions of a program. An error of `on_step` ends the run, not its client."""

    def __init__(self, progress: Progress, on_round: OnRound | None, on_step: OnStep | None):
        self._progress, self._on_round, self._on_step = progress, on_round, on_step
        self._at = Step(0, 0, 0)
        self._error: BaseException | None = None

    def sites(self, names: Sequence[str]) -> None:
        self._progress.sites(names)

    def stage(self, text: str) -> None:
        self._progress.stage(text)

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        self._at = Step(number, 0, 0)
        self._progress.round_begins(number, rounds, cohort)

    def client_begins(self, client: int, num_examples: int) -> None:
        self._at = Step(self._at.round, client, 0)
        self._progress.client_begins(client, num_examples)

    def step(self, num_examples: int) -> None:
        self._progress.step(num_examples)
        self._at = self._at._replace(examples=self._at.examples + num_examples)
        if self._on_step is None or self._error is not None:
            return
        try:
            self._on_step(self._at)
        except Exception as error:
            self._error = error
            raise

    def client_ends(self, client: int, problem: str | None) -> None:
        if self._error is not None:
            raise self._error
        self._progress.client_ends(client, problem)

    def evaluating(self, done: int, total: int) -> None:
        self._progress.evaluating(done, total)

    def round_ends(self, record: dict[str, Any]) -> None:
        self._progress.round_ends(record)
        if self._on_round is not None:
            self._on_round(record)
