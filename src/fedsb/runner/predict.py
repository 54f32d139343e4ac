"""What a finished run's model says of a file's rows: a label, a number or an answer to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.report.progress import Progress, counted
from fedsb.runner.finished_model import FinishedModel, check_finished, load_finished
from fedsb.runner.prepare_model import check_limits
from fedsb.tasks import Row
from fedsb.tasks.generate import batches, transformers_engine
from fedsb.tasks.scoring.benchmark import decoding_of
from fedsb.tasks.sources import asked_rows
from fedsb.tasks.task import Example, batches_by_length, evaluating, length_of, model_logits

Record = dict[str, Any]


def predict(run: Path, config: RunConfig, file: str, progress: Progress) -> list[Record]:
    """A record for each row of the file, in its order; `row` counts from 1.

    Of classes {"row", "label", "probabilities": name -> number}, of several {"row", "labels",
    "probabilities"}; of entities {"row", "tags"} or {"row", "spans"}, as the rows have them; of a regression
    {"row", "value"}; of texts {"row", "answer"}. The rows need no label and no response.

    Args:
        config: the run's, perhaps with other keys about how it is used.

    Raises:
        InputError: the run is not finished, or the file does not fit its task.
    """
    check_finished(run)
    progress.stage("reading data")
    rows = asked_rows(config, file)
    progress.stage(f"loading {Path(config.model.path).name}")
    finished = load_finished(run, config)
    progress.stage(f"{'answering' if finished.task.num_labels is None else 'labelling'} {len(rows)} rows")
    return predict_rows(finished, rows, file, counted(len(rows), progress.evaluating))


def predict_rows(
    finished: FinishedModel, rows: Sequence[Row], source: str, report: Callable[[int], None]
) -> list[Record]:
    """As `predict`, of rows that were read, by a model that is loaded.

    Args:
        source: the rows' name, for errors.
        report: is told how many more are done.

    Raises:
        InputError: the rows do not fit the task, or the task says nothing of rows without labels.
    """
    if finished.task.questions is None:
        raise InputError(f"task.kind: {finished.config.task.kind} does not say what it predicts")
    with stage("model.path", f"tokenizing {source}", "fix the row that it stops at", quotes=False):
        examples = finished.task.questions(rows, source)
    _check(finished, examples)
    records = records_of(finished, examples, report)
    return [{"row": row, **record} for row, record in enumerate(records, start=1)]


def records_of(
    finished: FinishedModel, examples: Sequence[Example], report: Callable[[int], None]
) -> list[Record]:
    """What the model says of each example, without its row's number."""
    with stage("evaluation.batch_size", "a pass of the model", "lower it, or take another model.device"):
        return (_answers if finished.task.num_labels is None else _labels)(finished, examples, report)


def _check(finished: FinishedModel, examples: Sequence[Example]) -> None:
    ids = [{"input_ids": example.get("input_ids", example.get("prompt_ids"))} for example in examples]
    config, path = finished.config, finished.config.model.path
    check_limits(config, finished.model, finished.tokenizer, ids, path=path)


def _answers(
    finished: FinishedModel, examples: Sequence[Example], report: Callable[[int], None]
) -> list[Record]:
    decoding = decoding_of(finished.config, ends=finished.task.ends)
    engine = transformers_engine(finished.model, finished.tokenizer, decoding)
    prompts = [example["prompt_ids"] for example in examples]
    records: list[Record] = [{}] * len(prompts)
    for number, at in enumerate(batches(prompts, finished.config.evaluation.batch_size)):
        for place, text in zip(at, engine([prompts[i] for i in at], number), strict=True):
            records[place] = {"answer": text.strip()}
        report(len(at))
    return records


def _labels(
    finished: FinishedModel, examples: Sequence[Example], report: Callable[[int], None]
) -> list[Record]:
    task, records = finished.task, [dict[str, Any]()] * len(examples)
    lengths = [length_of(example) for example in examples]
    with evaluating(finished.model):
        for at in batches_by_length(lengths, finished.config.evaluation.batch_size):
            logits = model_logits(finished.model, task.collate([examples[i] for i in at])).double().cpu()
            for place, row in zip(at, logits, strict=True):
                said = task.said or partial(_label, task.label_names)
                records[place] = said(row, examples[place])
            report(len(at))
    return records


def _label(names: Sequence[str] | None, logits: Tensor, example: Example) -> Record:
    if names is None:
        return {"value": float(logits[0])}
    shares = dict(zip(names, torch.softmax(logits, 0).tolist(), strict=True))
    return {"label": names[int(logits.argmax())], "probabilities": shares}
