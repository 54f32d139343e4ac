"""Parties of a mixture on their own machines: the simulated run's numbers, and what each says of its rows."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from run_helpers import changed, classification_config, metrics_of, parts_of, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.deploy.answers import node_facts
from fedsb.deploy.node import CORES, Node
from fedsb.deploy.node_config import NodeConfig, Refused
from fedsb.errors import InputError, UpdateRejected
from fedsb.federation.server import broadcasts
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort

RUN = "2" * 32


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture-nodes")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=48, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "method": {"name": "fed-mixer", "rank": 4, "targets": ["query", "value"]},
        "method__init": {"kind": "weights", "head_warmup": None},
        "method__experts": {"by": "site", "names": ["s0", "s1", "s2", "s3"]},
        "federation": {"clients": 4, "rounds": 4, "partition": {"kind": "by-column", "column": "site"}},
        "task__labels": ["pos", "neg", "flat"],
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def node_configs(config, parts, folder, *, names_expert):
    """The first two parties' rows have the column, under another name; the others' say nothing of it."""
    rows = [json.loads(line) for line in Path(config["data"]["train"]).read_text().splitlines()]
    nodes = []
    for client, part in enumerate(parts):
        data = {"train": str(folder / f"{client}.jsonl"), "columns": {"text": "text", "label": "label"}}
        own = [rows[i] for i in part]
        if names_expert and client > 1:
            data["expert"] = own[0]["site"]
            own = [{k: v for k, v in row.items() if k != "site"} for row in own]
        else:
            data["columns"]["site"] = "ward"
            own = [{"ward" if k == "site" else k: v for k, v in row.items()} for row in own]
        (folder / f"{client}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        nodes.append({"client": client, "data": data, "state": str(folder / f"state-{client}")})
    return nodes


def both(config, folder, *, names_expert=True, by=True):
    run(RunConfig.from_dict(config), folder / "simulated")
    parts = parts_of(folder / "simulated")
    nodes = node_configs(config, parts, folder, names_expert=names_expert)

    def opened(client):
        return Node(RunConfig.from_dict(config), NodeConfig(**nodes[client]), RUN)

    def ask(kind, cohort, message_to):
        yield from simulate_cohort(cohort, lambda client: opened(client).answer(kind, message_to(client)))

    facts = [opened(client).facts() for client in range(len(nodes))]
    remote = RemoteClients([f.num_examples for f in facts], ask, None, [f.expert_counts for f in facts])
    run(RunConfig.from_dict(config), folder / "deployed", remote=remote)
    return facts


def assert_equal_runs(folder):
    for a, b in zip(metrics_of(folder / "simulated"), metrics_of(folder / "deployed"), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    one, other = (load_checkpoint(folder / name / "checkpoint").state for name in ("simulated", "deployed"))
    torch.testing.assert_close(one.vector, other.vector, rtol=0, atol=1e-6)
    assert one.experts.counts == other.experts.counts
    assert one.experts.holding == other.experts.holding


@pytest.mark.parametrize(
    "experts",
    [
        {},
        {"train": "both", "keep": 0.1, "balance": 0.1, "entropy": 0.05, "route": "token"},
        {"start": "zero", "hard_rounds": 0},
        {"route": "request"},
    ],
    ids=["statistics", "both", "soft from the start", "request"],
)
def test_nodes_do_what_the_simulation_does(world, tmp_path, experts):
    config = config_of(world)
    config["method"]["experts"] |= experts
    config["federation"]["clients_per_round"] = 3
    facts = both(config, tmp_path)
    assert [f.expert_counts for f in facts] == [[12 * (i == c) for i in range(4)] for c in range(4)]
    assert_equal_runs(tmp_path)


def test_groups_are_found_among_nodes(world, tmp_path):
    config = config_of(world, method__experts={"count": 2})
    facts = both(config, tmp_path, names_expert=False)
    assert all(not f.experts for f in facts)
    assert_equal_runs(tmp_path)


def test_a_node_of_several_experts_says_how_many_rows_of_each(world, tmp_path):
    facts = both(config_of(world, federation__clients=2), tmp_path, names_expert=False)
    assert [f.expert_counts for f in facts] == [[12, 0, 12, 0], [0, 12, 0, 12]]
    assert_equal_runs(tmp_path)


def test_what_was_sent_once_is_kept_by_a_node(world, tmp_path):
    config = config_of(world)
    both(config, tmp_path)
    assert (tmp_path / "state-0" / RUN / CORES).exists()
    (tmp_path / "state-0" / RUN / CORES).unlink()
    saved = load_checkpoint(tmp_path / "deployed" / "checkpoint").state
    node = node_configs(config, parts_of(tmp_path / "simulated"), tmp_path, names_expert=True)[0]
    client = Node(RunConfig.from_dict(config), NodeConfig(**node), RUN)
    message = broadcasts(replace(saved, round=3), client.local_client.local_model.exchange)
    with pytest.raises(UpdateRejected, match="sent the experts once"):
        client.answer("train", message(0, client.local_client.local_model.exchange.whole))


def test_a_node_takes_no_part_for_an_expert_that_is_not_the_runs(world, tmp_path):
    config = config_of(world)
    run(RunConfig.from_dict(changed(config, federation__rounds=1)), tmp_path / "simulated")
    node = node_configs(config, parts_of(tmp_path / "simulated"), tmp_path, names_expert=True)[2]
    node["data"]["expert"] = "s9"
    with pytest.raises(InputError, match="is none of the run's experts"):
        Node(RunConfig.from_dict(config), NodeConfig(**node), RUN)
    del node["data"]["expert"]
    with pytest.raises(Refused, match="uses the column 'site', which this party does not give"):
        Node(RunConfig.from_dict(config), NodeConfig(**node), RUN)
    named = changed(config, federation__client_experts=[0, 1, 0, 1], method__experts={"names": ["a", "b"]})
    node["data"]["expert"] = "b"
    with pytest.raises(InputError, match=r"federation\.client_experts gives it 'a'"):
        Node(RunConfig.from_dict(named), NodeConfig(**node), RUN)


def test_hello_with_counts_that_are_none_is_refused():
    good = {"client": 0, "num_examples": 9, "base_digest": "0" * 16, "experts": "3,6"}
    assert asdict(node_facts(good, 2)) == good | {"test_examples": None}
    for wrong in ("3", "3,-6", "3,6,", "a,b", 7, "9" * 9 + ",1"):
        with pytest.raises(UpdateRejected, match="experts"):
            node_facts(good | {"experts": wrong}, 2)
