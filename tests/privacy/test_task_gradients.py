"""Every task whose examples a client may protect: a private step sums each example's own clipped gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from private_world import PrivateWorld
from run_helpers import causal_config, classification_config, tiny_bert, write_data, write_rows
from tiny_images import save_family, write_folder
from tiny_models import FAMILIES

from fedsb import RunConfig
from fedsb.errors import InputError
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import prepare_base

PRIVATE = {"unit": "example", "epsilon": 3.0, "delta": 1e-3, "clip_norm": 0.02}
WORDS = [["good"], ["w1", "bad", "w2"], ["w3", "w4", "dull", "w5"], ["w6", "good", "w7"]]
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "token-classification": (
        {"kind": "token-classification", "tokens": "tokens"},
        [
            {"tokens": words, "tags": ["B-X" if w in ("good", "bad") else "O" for w in words]}
            for words in WORDS
        ],
    ),
    "multi-label": (
        {"kind": "multi-label", "text": "text"},
        [{"text": " ".join(words), "label": [w for w in words if w[0] != "w"] + ["all"]} for words in WORDS],
    ),
    "image-classification": ({"kind": "image-classification"}, []),
}


def world_of(kind: str, folder: Path, dtype: str) -> PrivateWorld:
    task, rows = TASKS[kind]
    if rows:
        base, data = tiny_bert(folder / "model"), write_rows(folder / "rows.jsonl", rows)
    else:
        base, data = save_family(folder / "model"), write_folder(folder / "photos", 2)
    changes = {"model__dtype": dtype, "privacy": PRIVATE, "federation__clients": 1, "training__max_length": 8}
    config = classification_config(base, folder, task=task, method__init={"kind": "weights"}, **changes)
    return PrivateWorld(config | {"data": {"train": str(data), "test": str(data)}})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(TASKS))
def test_a_private_step_clips_each_example_alone(kind: str, dtype: str, tmp_path: Path) -> None:
    """In 16 bits batches have one shape, filled up with rows that count for nothing."""
    world = world_of(kind, tmp_path, dtype)
    examples = world.data.train[:4]
    clip_norm = PRIVATE["clip_norm"]
    together = world.clipped_sum(examples, clip_norm, batch_size=6)
    alone = [world.clipped_sum([example], clip_norm, batch_size=6) for example in examples]
    assert max(float(one.norm()) for one in alone) <= clip_norm * (1 + 1e-5)
    assert min(float(one.norm()) for one in alone) > 0.9 * clip_norm
    torch.testing.assert_close(together, sum(alone), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["deberta-v3", "opt"])
def test_layers_that_see_other_rows_than_the_batch_are_refused(family: str, tmp_path: Path) -> None:
    """Relative positions go through DeBERTa's keys; OPT makes rows of tokens before its MLP."""
    base = FAMILIES[family].save(tmp_path / "model")
    write_data(tmp_path / "data", train=12, test=2)
    make = causal_config if FAMILIES[family].causal else classification_config
    init = {"kind": "weights"}
    values = make(base, tmp_path / "data", privacy=PRIVATE, method__init=init, training__max_length=16)
    config = RunConfig.from_dict(values | {"evaluation": {}})
    data = prepare_data(config)
    with pytest.raises(InputError, match=r"rows of their own \(windows\), so that no example can be clipped"):
        prepare_base(config, data)
    whole = {"deberta-v3": ["value_proj"], "opt": "attention"}[family]
    method = config.method.model_copy(update={"targets": whole})
    assert prepare_base(config.model_copy(update={"method": method}), data).targets
