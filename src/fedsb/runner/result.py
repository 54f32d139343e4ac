"""What a run gives back to a program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fedsb.common.files import read_json, read_jsonl
from fedsb.config import RunConfig
from fedsb.privacy.ledger import LEDGER
from fedsb.runner.finished_model import FinishedModel
from fedsb.runner.given import plain_rows
from fedsb.runner.predict import Record, predict_rows
from fedsb.tasks.sources import as_test_rows, asked_rows

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RunResult:
    """A finished run: its summary, its model with the final adapter in it, its folder.

    Attributes:
        summary: what summary.json holds.
        finished: the model with its task, config and tokenizer.
        folder: the run folder.
    """

    summary: dict[str, Any]
    finished: FinishedModel
    folder: Path

    @property
    def model(self) -> nn.Module:
        """The base model with the final adapter in it."""
        return self.finished.model

    @property
    def tokenizer(self) -> Any:
        """What makes the model's inputs of texts, or of images."""
        return self.finished.tokenizer

    @property
    def config(self) -> RunConfig:
        """The run's config, every default written out."""
        return self.finished.config

    @property
    def history(self) -> DataFrame:
        """A pandas frame with a line for each round, from 0: `train_loss`, each score under its own name
        (missing where the round was not scored), bytes, seconds."""
        return history_of(self.folder)

    @property
    def ledger(self) -> DataFrame:
        """A pandas frame with a line for each kind of message: round, what, direction, clients, bytes,
        parameters, and whether the bytes were measured."""
        from pandas import DataFrame

        return DataFrame(read_json(self.folder / "ledger.json")["entries"])

    @property
    def privacy_ledger(self) -> DataFrame:
        """A pandas frame with a line for each release of a private run; without lines otherwise."""
        from pandas import DataFrame

        return DataFrame(read_jsonl(self.folder / LEDGER))

    def predict(self, rows: Any) -> list[Record]:
        """What the model says of each row, as `fedsb predict` does: a label, a number or an answer.

        Args:
            rows: a list of dicts, a `datasets.Dataset`, a pandas frame, or a path. They need no label.

        Raises:
            InputError: they do not fit the task.
        """
        if isinstance(rows, str | os.PathLike):
            source = os.fspath(rows)
            asked = asked_rows(self.config, source)
        else:
            source, asked = "rows", as_test_rows(self.config, plain_rows(rows, "rows"), "rows")
        return predict_rows(self.finished, asked, source, lambda more: None)


def history_of(folder: Path) -> DataFrame:
    """See `RunResult.history`."""
    from pandas import DataFrame

    kept = ("round", "train_loss", "upload_bytes", "download_bytes", "seconds", "epsilon", "deviation")
    lines = read_jsonl(folder / "metrics.jsonl")
    return DataFrame([{k: line[k] for k in kept if k in line} | line["eval"] for line in lines])
