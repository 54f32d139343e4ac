"""The Flower apps in one process: equal to the simulated run, and what comes of nodes that go wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from fake_grid import FakeGrid
from flwr.app import Context, Error, Message, RecordDict
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
from safetensors.torch import load_file, save_file

from fedsb import RunConfig, run
from fedsb.common.files import alone
from fedsb.deploy import asking, client_app, server_app
from fedsb.deploy import nodes as federation
from fedsb.deploy.nodes import Nodes
from fedsb.deploy.records import pack, payload_of
from fedsb.errors import InputError, RunFailed
from fedsb.federation import wire
from fedsb.runner import loop
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients

CLIENTS = 3


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    client_app.held.drop()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flower")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 2,
        "federation__clients": CLIENTS,
        "task__labels": ["pos", "neg", "flat"],
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def nodes_of(config, folder, **changes):
    """Node config files with the simulated run's parts as their data; node ids are 100 and up."""
    simulated = folder / "simulated"
    run(RunConfig.from_dict(config), simulated)
    parts = parts_of(simulated)
    rows = Path(config["data"]["train"]).read_text().splitlines(keepends=True)
    files = {}
    for client in range(CLIENTS):
        data = folder / f"{client}.jsonl"
        data.write_text("".join(rows[i] for i in parts[client]))
        settings = {
            "client": client,
            "data": {"train": str(data)},
            "state": str(folder / f"state{client}"),
        }
        files[100 + client] = str(write_config(folder / f"node{client}.yaml", changed(settings, **changes)))
    return files


def serve(grid, config, folder, **more):
    file = write_config(folder / "run.yaml", config)
    told = {"config": str(file), "out": str(folder / "deployed"), "wait-seconds": 0.0} | more
    server_app.app(grid, Context(1, 1, {}, RecordDict(), told))
    return metrics_of(folder / "deployed")


def assert_equal_runs(folder):
    for a, b in zip(metrics_of(folder / "simulated"), metrics_of(folder / "deployed"), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    one, other = (load_checkpoint(folder / name / "checkpoint") for name in ("simulated", "deployed"))
    torch.testing.assert_close(one.state.vector, other.state.vector, rtol=0, atol=1e-6)


def test_a_run_over_flower_equals_the_simulated_run(world, tmp_path):
    config = config_of(world)
    serve(FakeGrid(nodes_of(config, tmp_path)), config, tmp_path)
    assert_equal_runs(tmp_path)


@pytest.mark.parametrize("method", ["fed-sb", "fedit"])
def test_a_server_that_does_not_evaluate_needs_no_base_weights(world, tmp_path, method):
    """It has the model's config and tokenizer, no weights, no test file; the result is the simulated one."""
    init = {"kind": "orthonormal", "head_warmup": None}
    config = config_of(world, method__name=method, method__init=init, evaluation__every=None)
    files = nodes_of(config, tmp_path)
    bare = shutil.copytree(world / "bert", tmp_path / "bare", ignore=lambda *_: ["model.safetensors"])
    for node in files.values():
        settings = yaml.safe_load(Path(node).read_text())
        write_config(Path(node), settings | {"model": {"path": str(world / "bert")}})
    config = changed(config, model__path=str(bare), data__test="not there.jsonl")
    serve(FakeGrid(files), config, tmp_path)
    assert_equal_runs(tmp_path)
    simulated, deployed = (  # a server without weights cannot name the base's: the headers differ
        load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("simulated", "deployed")
    )
    assert simulated.keys() == deployed.keys()
    assert all(torch.equal(simulated[name], deployed[name]) for name in simulated)
    summary = json.loads((tmp_path / "deployed/summary.json").read_text())
    assert (summary["base"], summary["final"], summary["rounds"]) == ({}, {}, 2)


def test_with_uploads_of_16_bits(world, tmp_path):
    config = config_of(world, federation__rounds=1, federation__upload_dtype="float16")
    lines = serve(FakeGrid(nodes_of(config, tmp_path, audit=True)), config, tmp_path)
    assert_equal_runs(tmp_path)
    _hello, sent = sorted((tmp_path / "state1").rglob("sent/*.json"))
    each = json.loads(sent.read_text())["bytes"]
    numbers = lines[1]["upload_parameters"] // CLIENTS
    assert 2 * numbers < each < 2 * numbers + 400
    assert abs(lines[1]["upload_bytes"] - CLIENTS * each) < 50  # headers differ by some digits
    (whole,) = load_file(sent.with_suffix(".safetensors")).values()
    assert whole.dtype == torch.float16


def test_cohorts_are_drawn_from_a_secret_of_the_server(world, tmp_path, monkeypatch):
    """Every node knows the run's seed, and with it could name who else took part in a model that it sees."""
    privacy = {"unit": "client", "epsilon": 8.0, "delta": 1e-2, "clip_norm": 0.5}
    config = config_of(world, privacy=privacy, federation__weighting="uniform")
    secrets, secret_cohort = [], loop.secret_cohort

    def watched(private, number):
        secrets.append((private.samples.run, private.samples.insecure_seed))
        return secret_cohort(private, number)

    files = nodes_of(config, tmp_path)
    monkeypatch.setattr(loop, "secret_cohort", watched)
    serve(FakeGrid(files), config, tmp_path)
    assert secrets == [(tmp_path / "deployed", None)] * 2
    assert len((tmp_path / "deployed/private/sampling-secret").read_bytes()) == 32
    facts = json.loads((tmp_path / "deployed/summary.json").read_text())["privacy"]
    assert "seed" not in facts["statement"]


def harmed(node, change):
    def harm(sender, reply):
        return change(reply) if sender == node and reply.metadata.message_type == "train" else reply

    return harm


def with_payload(change):
    def changed_reply(reply):
        reply.content = pack({}, change(payload_of(reply.content)))
        return reply

    return changed_reply


def stale(message):
    header, vector = wire.unpack(message)
    return wire.pack(wire.Header(**{**vars(header), "round": header.round - 1}), vector)


@with_payload
def poison(message):
    header, vector = wire.unpack(message)
    return wire.pack(header, -1e5 * vector)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_payload(lambda m: m[: len(m) // 2]), "not a fedsb-1 message"),
        (with_payload(stale), "wrong round"),
        (lambda reply: None, "no answer within"),
    ],
    ids=["cut", "stale", "lost"],
)
def test_a_bad_answer_is_left_out_with_its_reason(world, tmp_path, change, reason):
    config = config_of(world, federation__deadline_seconds=0.3)
    lines = serve(FakeGrid(nodes_of(config, tmp_path), harmed(101, change)), config, tmp_path)
    assert [line["clients"] for line in lines[1:]] == [[0, 2], [0, 2]]
    for line in lines[1:]:
        (rejected,) = line["rejected"]
        assert rejected["client"] == 1
        assert reason in rejected["reason"]


def test_a_poisoned_node_is_kept_out(world, tmp_path):
    federation = {"federation__weighting": "uniform", "federation__robust": {"norm_bound": 50.0}}
    config = config_of(world, federation__rounds=1, **federation)
    (line,) = serve(FakeGrid(nodes_of(config, tmp_path), harmed(101, poison)), config, tmp_path)[1:]
    assert line["clients"] == [0, 2]
    (rejected,) = line["rejected"]
    assert rejected["client"] == 1
    assert "federation.robust.norm_bound is 50" in rejected["reason"]


def test_too_few_answers_stop_the_run_and_it_is_resumed_later(world, tmp_path):
    config = config_of(world, federation__min_updates=3, federation__deadline_seconds=0.3)
    files = nodes_of(config, tmp_path)
    broken = FakeGrid(files, lambda node, reply: None if node == 101 and len(broken.pushed) > 6 else reply)
    with pytest.raises(RunFailed, match=r"round 2: 2 usable updates, federation.min_updates is 3"):
        serve(broken, config, tmp_path)
    assert len(metrics_of(tmp_path / "deployed")) == 2
    serve(FakeGrid(files), config, tmp_path)
    assert_equal_runs(tmp_path)


def test_a_node_that_comes_back_under_another_id_takes_its_place(world, tmp_path):
    config = config_of(world)
    files = nodes_of(config, tmp_path)

    def moves(node, reply):
        if node == 101 and reply.metadata.message_type == "train":
            grid.node_configs[201] = grid.node_configs.pop(101, files[101])
        return reply

    grid = FakeGrid(dict(files), moves)
    serve(grid, config, tmp_path)
    assert (201, "train") in grid.pushed
    assert_equal_runs(tmp_path)


def test_a_missing_node_is_named(world, tmp_path):
    config = config_of(world)
    files = nodes_of(config, tmp_path)
    del files[101]
    with pytest.raises(RunFailed, match=r"no node for client 1 within"):
        serve(FakeGrid(files), config, tmp_path)


def test_what_a_node_refuses_is_told_to_the_server(world, tmp_path, capsys):
    config = config_of(world)
    files = nodes_of(config, tmp_path, limits={"largest_epsilon": 1.0})
    with pytest.raises(RunFailed, match="no node for client"):
        serve(FakeGrid(files), config, tmp_path)
    assert "limits.largest_epsilon: this party takes part in runs" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_nodes_own_fault_stays_with_it(world, tmp_path, capsys, caplog):
    config = config_of(world)
    files = nodes_of(config, tmp_path)
    (tmp_path / "1.jsonl").write_text('{"text": "good", "label": "secret diagnosis"}\n')
    with pytest.raises(RunFailed, match="no node for client 1"):
        serve(FakeGrid(files), config, tmp_path)
    told = capsys.readouterr().out
    assert "its own log says why" in " ".join(told.split())
    assert "secret" not in told


def test_other_weights_are_refused(world, tmp_path):
    config = config_of(world)
    files = nodes_of(config, tmp_path)
    other = tiny_bert(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    settings = yaml.safe_load(Path(files[101]).read_text())
    write_config(tmp_path / "node1.yaml", settings | {"model": {"path": str(other)}})
    with pytest.raises(RunFailed, match=r"not the same weights .*client 1"):
        serve(FakeGrid(files), config, tmp_path)
    for client in (0, 2):
        settings = yaml.safe_load(Path(files[100 + client]).read_text())
        write_config(tmp_path / f"node{client}.yaml", settings | {"model": {"path": str(other)}})
    with pytest.raises(InputError, match=r"model.path: the server's base model has the digest"):
        serve(FakeGrid(files), config, tmp_path)


def test_a_server_without_settings_says_which(world, tmp_path):
    with pytest.raises(InputError, match=r"config: missing in the run config; give it"):
        server_app.app(FakeGrid({}), Context(1, 1, {}, RecordDict(), {}))


def test_bases_from_the_nodes_gradients(world, tmp_path):
    init = {"samples": 48, "upload": "sketch", "head_warmup": {"rounds": 2, "steps": 15}}
    config = config_of(world, method__init=init)
    grid = FakeGrid(nodes_of(config, tmp_path))
    serve(grid, config, tmp_path)
    assert_equal_runs(tmp_path)
    assert len([node for node, _ in grid.pushed if node == 100]) == 1 + 2 + 1 + 1 + 2  # hello to two rounds


def test_a_node_that_comes_late_gets_the_bases_and_the_cores(world, tmp_path):
    """Its disk is new too: what it was sent before is gone."""
    config = config_of(world, method__init={"samples": 48, "head_warmup": {"rounds": 1, "steps": 5}})
    files = nodes_of(config, tmp_path)

    def moves(node, reply):
        trained = reply.metadata.message_type == "train" and grid.pushed.count((101, "train")) == 4
        if node == 101 and trained and 201 not in grid.node_configs:
            settings = yaml.safe_load(Path(files[101]).read_text()) | {"state": str(tmp_path / "new")}
            grid.node_configs[201] = str(write_config(tmp_path / "new.yaml", settings))
            del grid.node_configs[101]
        return reply

    grid = FakeGrid(dict(files), moves)
    serve(grid, config, tmp_path)
    assert grid.pushed.count((201, "train")) == 2  # bases, then a round
    assert_equal_runs(tmp_path)


def test_a_node_that_failed_at_first_is_asked_again(world, tmp_path, monkeypatch):
    """Its client process died while it said hello, or its owner fixes its file while the server waits."""
    monkeypatch.setattr(federation, "AGAIN_SECONDS", 0.0)
    config, hellos = config_of(world), []

    def dies_twice(node, reply):
        if node == 101 and reply.metadata.message_type == "query":
            hellos.append(node)
            if len(hellos) <= 2:
                return Message(Error(8, "ClientApp stopped responding."), reply_to=asked[-1])
        return reply

    grid = FakeGrid(nodes_of(config, tmp_path), dies_twice)
    asked, deliver = [], grid._deliver

    def keep(message):
        asked.append(message)
        return deliver(message)

    grid._deliver = keep
    serve(grid, config, tmp_path, **{"wait-seconds": 60.0})
    assert_equal_runs(tmp_path)
    assert len(hellos) == 3


def test_a_run_begun_again_in_the_same_place_finds_new_nodes(world, tmp_path):
    """Its folder was removed: what nodes kept of the former run, base weights too, plays no part."""
    config = config_of(world, method__name="flora")
    grid = FakeGrid(nodes_of(config, tmp_path))
    serve(grid, config, tmp_path)
    shutil.rmtree(tmp_path / "deployed")
    serve(FakeGrid(grid.node_configs), config, tmp_path)
    assert_equal_runs(tmp_path)
    assert len(list((tmp_path / "state0").iterdir())) == 2


def test_a_run_whose_nodes_sign_equals_the_simulated_run(world, tmp_path):
    """With a start, so that every kind of question is asked; a stranger says it is client 0."""
    init = {"samples": 24, "head_warmup": {"rounds": 1, "steps": 5}}
    config, clients = config_of(world, method__init=init, federation__rounds=1), tmp_path / "clients"
    files = nodes_of(config, tmp_path)
    for client, file in enumerate([*files.values()]):
        key = make_key(tmp_path / f"client-{client}")
        register(key, client, clients)
        settings = yaml.safe_load(Path(file).read_text())
        write_config(Path(file), settings | {"key": key.name})
    stranger = {"key": make_key(tmp_path / "stranger").name, "state": str(tmp_path / "elsewhere")}
    settings = yaml.safe_load(Path(files[100]).read_text()) | stranger
    said, grid = [], FakeGrid({99: str(write_config(tmp_path / "stranger.yaml", settings)), **files})
    parsed = RunConfig.from_dict(config)
    nodes = Nodes(grid, parsed, "0" * 32, said.append, keys=clients)
    nodes.gather(0.0)
    facts = [nodes.facts[client] for client in range(CLIENTS)]
    remote = RemoteClients([f.num_examples for f in facts], nodes.ask, facts[0].base_digest)
    run(parsed, tmp_path / "deployed", remote=remote)
    assert_equal_runs(tmp_path)
    assert (99, "train") not in grid.pushed
    (refused,) = [line for line in said if "node 99" in line]
    assert "not signed with the key registered for client 0" in refused


def test_two_servers_do_not_work_on_one_run(world, tmp_path):
    """The former one may live on for seconds after its SuperLink was killed."""
    config = config_of(world)
    with alone(tmp_path / ".deployed.lock", "here"), pytest.raises(RunFailed, match="another process works"):
        serve(FakeGrid(nodes_of(config, tmp_path)), config, tmp_path)
