"""The config of `fedsb run` without arguments: generated notes, five hospitals, the tiny encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from fedsb.cli.quickstart import MODEL_DIR
from fedsb.cli.quickstart.notes import train_and_test
from fedsb.common.files import write_jsonl
from fedsb.config import RunConfig
from fedsb.config.yaml_file import override

NUM_TRAIN, NUM_TEST, DATA_SEED = 1500, 500, 0

CONFIG = """
seed: 0
task: {kind: classification, text: [note], label: department}
method: {name: fed-sb, rank: 32, targets: [query, key, value, dense], init: {samples: 512, step_size: 5.0e-3}}
federation: {clients: 5, rounds: 6, partition: {kind: by-column, column: hospital}}
training: {learning_rate: 5.0e-3, epochs: 2, batch_size: 16, max_length: 64, grad_clip: 1.0}
"""


def quickstart_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Write the notes as `folder`/data/*.jsonl, where anyone can read them, and say how to train on them.

    A folder that holds a run already is left alone.
    """
    data = folder / "data"
    if not (folder / "config.yaml").exists():
        data.mkdir(parents=True, exist_ok=True)
        train, test = train_and_test(NUM_TRAIN, NUM_TEST, DATA_SEED)
        write_jsonl(data / "train.jsonl", train)
        write_jsonl(data / "test.jsonl", test)
    values = yaml.safe_load(CONFIG)
    if "privacy" in override({}, overrides):  # which clips by itself
        del values["training"]["grad_clip"]
    values["model"] = {"path": str(MODEL_DIR)}
    values["data"] = {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl")}
    return RunConfig.from_dict(override(values, overrides), source="quickstart")
