"""Nodes do what the simulation does for every kind of task, with columns and files of their own."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import classification_config, metrics_of, parts_of, tiny_bert, write_rows
from tiny_images import save_family, write_folder

from fedsb import RunConfig, run
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig, task_columns_of
from fedsb.errors import InputError
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort
from fedsb.runner.prepare_data import check_can_deploy
from fedsb.tasks.rows import read_rows

WORDS = [["good", "w1"], ["w2", "bad", "w3"], ["dull"], ["w4", "w5", "good"]] * 3
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "token-classification": (
        {"kind": "token-classification", "tokens": "words", "tags": "bio", "labels": ["X"]},
        [{"words": words, "bio": ["B-X" if w in ("good", "bad") else "O" for w in words]} for words in WORDS],
    ),
    "multi-label": (
        {"kind": "multi-label", "text": "note", "label": ["one", "two"]},
        [
            {"note": " ".join(words), "one": int("good" in words), "two": int("w3" in words)}
            for words in WORDS
        ],
    ),
    "image-classification": (
        {"kind": "image-classification", "image": "photo", "labels": ["blue", "green", "red"]},
        [],
    ),
}


def config_of(kind: str, folder: Path) -> dict[str, Any]:
    """The config, with its rows in one file."""
    task, rows = deepcopy(TASKS[kind])
    if rows:
        base = tiny_bert(folder / "model")
    else:
        base = save_family(folder / "model")
        made = read_rows(str(write_folder(folder / "photos", 4)))
        rows = [{"photo": f"photos/{row['image']}", "label": row["label"]} for row in made]
    data = write_rows(folder / "rows.jsonl", rows)
    init = {"kind": "weights", "head_warmup": {"rounds": 1, "steps": 2}}
    few = {"federation__rounds": 2, "federation__clients": 2, "method__init": init}
    values = classification_config(base, folder, task=task, **few)
    return values | {"data": {"train": str(data), "test": str(data)}}


def node_of(client: int, config: dict[str, Any], part: list[int], folder: Path) -> NodeConfig:
    """A party's rows under column names of its own, beside the images."""
    lines = Path(config["data"]["train"]).read_text().splitlines()
    rows = [{f"our {key}": value for key, value in json.loads(lines[i]).items()} for i in part]
    write_rows(folder / f"{client}.jsonl", rows)
    columns = {name: f"our {name}" for name in task_columns_of(RunConfig.from_dict(config))}
    data = {"train": str(folder / f"{client}.jsonl"), "columns": columns}
    return NodeConfig(client=client, data=data, state=str(folder / f"state-{client}"))


@pytest.mark.parametrize("kind", list(TASKS))
def test_nodes_do_what_the_simulation_does(kind: str, tmp_path: Path) -> None:
    values = config_of(kind, tmp_path)
    config = RunConfig.from_dict(values)
    run(config, tmp_path / "simulated")
    parts = parts_of(tmp_path / "simulated")
    nodes = [Node(config, node_of(c, values, part, tmp_path), "1" * 32) for c, part in enumerate(parts)]

    def ask(kind: str, cohort: Any, message_to: Any) -> Any:
        yield from simulate_cohort(cohort, lambda client: nodes[client].answer(kind, message_to(client)))

    run(config, tmp_path / "deployed", remote=RemoteClients([len(part) for part in parts], ask))
    one, other = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("simulated", "deployed"))
    torch.testing.assert_close(one.state.vector, other.state.vector, rtol=0, atol=1e-6)
    scores = [metrics_of(tmp_path / name)[-1]["eval"] for name in ("simulated", "deployed")]
    assert scores[0] == pytest.approx(scores[1])


@pytest.mark.parametrize("kind", ["token-classification", "image-classification"])
def test_parties_must_agree_on_the_classes(kind: str, tmp_path: Path) -> None:
    values = config_of(kind, tmp_path)
    del values["task"]["labels"]
    with pytest.raises(InputError, match=r"task.labels: .*must agree on the classes"):
        check_can_deploy(RunConfig.from_dict(values))


def test_a_partys_images_are_named_by_one_file(tmp_path: Path) -> None:
    config = RunConfig.from_dict(config_of("image-classification", tmp_path))
    data = {"train": str(tmp_path / "photos"), "columns": {"photo": "image", "label": "label"}}
    with pytest.raises(InputError, match="a node's rows are one file"):
        Node(config, NodeConfig(client=0, data=data, state=str(tmp_path / "state")), "1" * 32)
