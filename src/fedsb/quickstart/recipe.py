"""The config of `fedsb run` without arguments: generated notes, five hospitals, the tiny encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from fedsb.config import RunConfig, override
from fedsb.files import write_jsonl
from fedsb.quickstart import MODEL_DIR
from fedsb.quickstart.notes import generate

NUM_EXAMPLES, NUM_TEST_EXAMPLES = 1500, 500
DATA_SEED, TEST_SEED = 0, 1  # an even and an odd seed share no note

CONFIG = """
seed: 0
task: {kind: classification, text: [note], label: department}
method: {name: fed-sb, rank: 32, targets: [query, key, value, dense], init: {samples: 512, step_size: 5.0e-3}}
federation: {clients: 5, rounds: 6, partition: {kind: by-column, column: hospital}}
training: {learning_rate: 5.0e-3, epochs: 2, batch_size: 16, max_length: 64, grad_clip: 1.0}
"""


def quickstart_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Write the notes as `folder`/data/*.jsonl, where anyone can read them, and say how to train on them.

    The notes are written only if they are not there, so an existing run folder is left alone.
    """
    data = folder / "data"
    for name, count, seed in (("train", NUM_EXAMPLES, DATA_SEED), ("test", NUM_TEST_EXAMPLES, TEST_SEED)):
        if not (data / f"{name}.jsonl").exists() and not (folder / "config.yaml").exists():
            data.mkdir(parents=True, exist_ok=True)
            write_jsonl(data / f"{name}.jsonl", generate(count, seed))
    values = yaml.safe_load(CONFIG)
    values["model"] = {"path": str(MODEL_DIR)}
    values["data"] = {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl")}
    return RunConfig.from_dict(override(values, overrides), source="quickstart")
