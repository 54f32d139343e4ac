"""A mixture over the Flower apps: four nodes of two kinds of rows give the simulated run."""

import json
from pathlib import Path

import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from run_helpers import classification_config, metrics_of, parts_of, rows, tiny_bert, write_config, write_rows

from fedsb import RunConfig, run
from fedsb.deploy import asking, client_app, server_app
from fedsb.runner.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    client_app.held.drop()


@pytest.mark.parametrize("every", [1, None], ids=["evaluated", "a server without weights"])
def test_four_nodes_of_two_kinds_give_the_simulated_run(tmp_path, every):
    """Two name the column in their rows, two the expert of them all; each node is opened again in between."""
    tiny_bert(tmp_path / "bert")
    for name, seed in (("train", 1), ("test", 2)):
        made = [row | {"ward": "ab"[i // 3 % 2]} for i, row in enumerate(rows(48, seed=seed))]
        write_rows(tmp_path / f"{name}.jsonl", made)
    config = classification_config(
        tmp_path / "bert",
        tmp_path,
        task__labels=["pos", "neg", "flat"],
        method={
            "name": "fed-mixer",
            "rank": 4,
            "experts": {"by": "ward", "names": ["a", "b"]},
            "init": {"kind": "orthonormal", "head_warmup": None},
        },
        federation={"clients": 4, "rounds": 4, "partition": {"kind": "by-column", "column": "ward"}},
        evaluation__every=every,
    )
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    serve(FakeGrid(node_files(config, tmp_path)), config, tmp_path)
    for a, b in zip(metrics_of(tmp_path / "simulated"), metrics_of(tmp_path / "deployed"), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    one, other = (load_checkpoint(tmp_path / name / "checkpoint").state for name in ("simulated", "deployed"))
    torch.testing.assert_close(one.vector, other.vector, rtol=0, atol=1e-6)
    assert one.experts.counts == other.experts.counts == {c: {c // 2: 12} for c in range(4)}


def node_files(config, folder):
    lines = [json.loads(line) for line in Path(config["data"]["train"]).read_text().splitlines()]
    files = {}
    for client, part in enumerate(parts_of(folder / "simulated")):
        own, data = [lines[i] for i in part], {"train": str(folder / f"{client}.jsonl")}
        if client % 2:
            data["expert"] = own[0]["ward"]
            own = [{k: v for k, v in row.items() if k != "ward"} for row in own]
        write_rows(Path(data["train"]), own)
        settings = {"client": client, "data": data, "state": str(folder / f"state{client}")}
        files[100 + client] = str(write_config(folder / f"node{client}.yaml", settings))
    return files


def serve(grid, config, folder):
    told = {
        "config": str(write_config(folder / "run.yaml", config)),
        "out": str(folder / "deployed"),
        "wait-seconds": 0.0,
    }
    server_app.app(grid, Context(1, 1, {}, RecordDict(), told))
