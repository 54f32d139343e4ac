"""Secure aggregation over the Flower apps: equal to the simulated run, nodes lost on the way, a server that
asks for too much."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from keys import make_key, register
from run_helpers import (
    changed,
    classification_config,
    metrics_of,
    parts_of,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.deploy import asking, client_app, open_node, server_app
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig, Refused, config_digest
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.secure import noise_shares
from fedsb.report import write
from fedsb.runner.checkpoint import load_checkpoint

CLIENTS = 3


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    """All nodes take turns in this process: each question finds its node closed, with its files alone."""
    monkeypatch.setattr(open_node.gc, "collect", lambda: 0)
    monkeypatch.setattr(write, "build_page", lambda *args, **more: "")  # plots take longer than rounds
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    client_app.held.drop()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure-flower")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    for client in range(CLIENTS):
        register(make_key(folder / "keys" / f"client-{client}"), client, folder / "peers")
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 2,
        "federation__clients": CLIENTS,
        "federation__secure_aggregation": {"threshold": 0.67},
        "task__labels": ["pos", "neg", "flat"],
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def simulated(world, config):
    """The simulated run of this config, done once."""
    folder = world / hashlib.sha256(json.dumps(config).encode()).hexdigest()
    if not folder.exists():
        run(RunConfig.from_dict(config), folder)
    return folder


def nodes_of(world, config, folder, **changes):
    """Node config files with the simulated run's parts as their data; node ids are 100 and up."""
    parts = parts_of(simulated(world, config))
    rows = Path(config["data"]["train"]).read_text().splitlines(keepends=True)
    files = {}
    for client in range(CLIENTS):
        data = folder / f"{client}.jsonl"
        data.write_text("".join(rows[i] for i in parts[client]))
        settings = {
            "client": client,
            "data": {"train": str(data)},
            "state": str(folder / f"state{client}"),
            "key": str(world / "keys" / f"client-{client}"),
            "peers": str(world / "peers"),
        }
        files[100 + client] = str(write_config(folder / f"node{client}.yaml", changed(settings, **changes)))
    return files


def serve(world, grid, config, folder):
    file = write_config(folder / "run.yaml", config)
    told = {"config": str(file), "out": str(folder / "deployed"), "wait-seconds": 0.0}
    told["clients"] = str(world / "peers")
    server_app.app(grid, Context(1, 1, {}, RecordDict(), told))
    return metrics_of(folder / "deployed")


def states(world, config, folder):
    runs = simulated(world, config), folder / "deployed"
    return [load_checkpoint(run / "checkpoint").state.vector for run in runs]


def kind_of(message):
    return str(message.content["facts"]["kind"])


class Losing(FakeGrid):
    """Loses a node as it is asked this kind of question for the second time."""

    def __init__(self, files, node, kind):
        super().__init__(files)
        self.node, self.kind, self.times = node, kind, 0

    def _deliver(self, message):
        asked = message.metadata.dst_node_id == self.node and kind_of(message) == self.kind
        self.times += asked
        if asked and self.times >= 2:
            self.node_configs.pop(self.node, None)
        return super()._deliver(message)


@pytest.mark.parametrize(
    "init",
    [
        {"kind": "weights", "head_warmup": None},
        {"upload": "sketch", "samples": 30, "head_warmup": {"rounds": 1, "steps": 3}},
    ],
    ids=["rounds", "start"],
)
def test_a_secure_run_over_flower_equals_the_simulated_run(world, tmp_path, init):
    config = config_of(world, method__init=init)
    serve(world, FakeGrid(nodes_of(world, config, tmp_path)), config, tmp_path)
    here, there = states(world, config, tmp_path)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-6 if init["head_warmup"] is None else 1e-2)
    lines = [metrics_of(run) for run in (simulated(world, config), tmp_path / "deployed")]
    assert [line["clients"] for line in lines[0]] == [line["clients"] for line in lines[1]]


def test_no_key_touches_the_servers_folder_and_a_nodes_own_file_is_private(world, tmp_path):
    config = config_of(world)
    serve(world, FakeGrid(nodes_of(world, config, tmp_path)), config, tmp_path)
    (file,) = (tmp_path / "state0").rglob("secure.json")
    assert file.stat().st_mode & 0o77 == 0
    held = json.loads(file.read_text())["held"]
    assert held["mask_key"] == held["share_key"] == held["seed"] == ""
    kept = b"".join(path.read_bytes() for path in (tmp_path / "deployed").rglob("*") if path.is_file())
    assert not [public for public in held["keys"].values() if bytes.fromhex(public) in kept]


@pytest.mark.parametrize("kind", ["shares", "train", "unmask"])
def test_a_node_that_dies_in_a_round_costs_its_update_at_most(world, tmp_path, kind):
    config = config_of(world)
    grid = Losing(nodes_of(world, config, tmp_path), 101, kind)
    lines = serve(world, grid, config, tmp_path)
    assert lines[1]["clients"] == [0, 1, 2]
    assert lines[2]["clients"] == ([0, 1, 2] if kind == "unmask" else [0, 2])


def test_below_the_threshold_the_run_stops_and_is_resumed_when_nodes_are_back(world, tmp_path):
    config = config_of(world, federation__secure_aggregation={"threshold": 1.0})
    files = nodes_of(world, config, tmp_path)
    with pytest.raises(RunFailed, match=r"round 2: 2 of 3 clients sent their numbers.* needs 3"):
        serve(world, Losing(dict(files), 101, "train"), config, tmp_path)
    assert load_checkpoint(tmp_path / "deployed/checkpoint").state.round == 1
    client_app.held.drop()
    serve(world, FakeGrid(files), config, tmp_path)
    here, there = states(world, config, tmp_path)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-6)


def test_clients_share_the_noise_over_flower_and_no_run_goes_on_with_too_few(world, tmp_path):
    privacy = {"unit": "client", "epsilon": 50.0, "delta": 1e-2, "clip_norm": 0.5, "honest": 1.0}
    config = config_of(world, privacy=privacy)
    with pytest.raises(RunFailed, match=r"round 2: 2 of 3 clients sent their numbers.* needs 3"):
        serve(world, Losing(nodes_of(world, config, tmp_path), 101, "train"), config, tmp_path)
    one, other = (metrics_of(run)[1] for run in (simulated(world, config), tmp_path / "deployed"))
    assert one["epsilon"] == other["epsilon"] > 0
    assert one["clients"] == other["clients"] == [0, 1, 2]


# Sums over rows whose noise parties share

SHARED = {"unit": "example", "noise": "shared", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}
ONE_STEP = {"training__optimizer": "sgd", "training__epochs": 0.5, "training__learning_rate": 2.0}


def test_a_step_over_all_parties_rows_over_flower_equals_the_simulated_one(world, tmp_path, monkeypatch):
    monkeypatch.setattr(noise_shares, "discrete_gaussian", lambda count, std, stream: np.zeros(count, int))
    privacy = SHARED | {"epsilon": None, "noise_multiplier": 1.5, "insecure_seed": 3}
    config = config_of(world, privacy=privacy, **ONE_STEP)
    serve(world, FakeGrid(nodes_of(world, config, tmp_path)), config, tmp_path)
    here, there = states(world, config, tmp_path)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-6)


def test_parties_with_limits_share_noise_where_they_know_their_peers_and_each_is_charged(world, tmp_path):
    config = config_of(world, privacy=SHARED, **ONE_STEP)
    limits = {
        "limits": {"largest_epsilon": 8.0, "largest_delta": 1e-3},
        "approved": [config_digest(RunConfig.from_dict(config))],
        "data__columns": {"text": "text", "label": "label"},
    }
    files = nodes_of(world, config, tmp_path, **limits)
    lines = serve(world, FakeGrid(files), config, tmp_path)
    assert lines[2]["clients"] == [0, 1, 2]
    facts = json.loads((tmp_path / "deployed" / "summary.json").read_text())["privacy"]
    assert 7.9 < facts["epsilon"] == lines[2]["epsilon"] <= 8.0
    (file,) = (tmp_path / "state0" / "ledgers").glob("*.jsonl")
    charged = [json.loads(line) for line in file.read_text().splitlines()]
    mechanism = {"noise_multiplier": facts["noise_multiplier"], "sampling_probability": 0.5, "steps": 1}
    assert [line["mechanism"] for line in charged] == [mechanism | {"discrete": True}] * 2
    with pytest.raises(Refused, match=r"privacy.noise: shared: a server could play the other parties"):
        node_of(world, tmp_path, config, **limits, peers=None)


# What a node refuses


def node_of(world, folder, config, **changes):
    files = nodes_of(world, config, folder, **changes)
    return Node(RunConfig.from_dict(config), NodeConfig.from_yaml(files[101]), "ab" * 16)


def test_a_plain_question_is_not_answered_in_a_run_with_secure_aggregation(world, tmp_path):
    node = node_of(world, tmp_path, config_of(world))
    exchange = node.local_client.local_model.exchange
    layout = exchange.down(exchange.rank)
    broadcast = wire.pack(wire.Header("fed-sb", 1, layout.digest), torch.zeros(layout.size))
    with pytest.raises(UpdateRejected, match="no session"):
        node.answer("train", broadcast)


def test_a_run_without_it_is_refused_by_a_node_with_a_smallest_cohort(world, tmp_path):
    files = nodes_of(world, config_of(world), tmp_path, limits={"smallest_cohort": 3})
    plain = RunConfig.from_dict(config_of(world, federation__secure_aggregation=None))
    with pytest.raises(Refused, match="in sums over 3 parties or more"):
        Node(plain, NodeConfig.from_yaml(files[101]), "ab" * 16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limits": {"smallest_cohort": 4}}, "has 3"),
        ({"limits": {"smallest_cohort": 3}, "peers": None}, "peers"),
    ],
)
def test_small_cohorts_and_unknown_peers_are_refused(world, tmp_path, changes, said):
    with pytest.raises(Refused, match=said):
        node_of(world, tmp_path, config_of(world), **changes)


def test_a_node_whose_key_others_do_not_have_is_in_no_sum(world, tmp_path):
    """Registered at the server under another key than at its peers: a server that plays a party itself."""
    config = config_of(world)
    files = nodes_of(world, config, tmp_path)
    other = make_key(tmp_path / "other")
    shutil.copytree(world / "peers", tmp_path / "clients")
    register(other, 2, tmp_path / "clients")
    settings = json.loads(json.dumps(NodeConfig.from_yaml(files[102]).model_dump(mode="json")))
    files[102] = str(write_config(tmp_path / "node2.yaml", settings | {"key": str(other)}))
    file = write_config(tmp_path / "run.yaml", config)
    told = {"config": str(file), "out": str(tmp_path / "deployed"), "wait-seconds": 0.0}
    told["clients"] = str(tmp_path / "clients")
    with pytest.raises(RunFailed, match="client 2 did not sign the keys said to be its"):
        server_app.app(FakeGrid(files), Context(1, 1, {}, RecordDict(), told))
