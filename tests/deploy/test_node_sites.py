"""Sites on their own machines: scores and models of their own as in the simulated run, and what may leave."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from run_helpers import changed, classification_config, metrics_of, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.deploy.answers import node_facts
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig, config_digest
from fedsb.deploy.own_part import FILE, OwnPart
from fedsb.deploy.write import write_deployment
from fedsb.errors import InputError, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.scores import accepted_scores
from fedsb.federation.server import Arrived, broadcast
from fedsb.models.peft_folder import read_adapter
from fedsb.privacy.ledger import LEDGER, read_spends
from fedsb.report.progress import Silent
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort
from fedsb.runner.export import export_lora
from fedsb.runner.prepare_data import prepare_data

RUN = "3" * 32
CLIENTS = 2
WARMUP = {"rounds": 1, "steps": 5}
STAYS = {
    "shared": {"method__name": "flora"},
    "personal": {"method__personal": True},
    "fedsa": {"method__name": "fedsa-lora"},
    "two exchanges": {"method__name": "fedask"},
    "less the start": {"method__name": "fr-lora"},
    "warm head": {"method__name": "fedit", "method__init": {"samples": 30, "head_warmup": WARMUP}},
    "gradients": {"method__init": {"samples": 30, "head_warmup": WARMUP}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node-sites")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "federation": {"clients": CLIENTS, "rounds": 2, "sites": ["north", "south"]},
        "task__labels": ["pos", "neg", "flat"],
        "method__targets": ["query", "value"],
        "method__init": {"kind": "weights", "head_warmup": None},
        "data__client_test": 0.2,
        "evaluation": {"at_clients": True, "baselines": ["local"]},
    }
    config = classification_config(world / "bert", world / "data", **few | changes)
    del config["data"]["test"]
    return config


def node_configs(config, folder):
    """Each party's rows, those that it is scored on among them, in their order."""
    rows = [json.loads(line) for line in Path(config["data"]["train"]).read_text().splitlines()]
    data, nodes = prepare_data(RunConfig.from_dict(config)), []
    for client, parts in enumerate(zip(data.parts, data.client_tests, strict=True)):
        file = folder / f"{client}.jsonl"
        file.write_text("".join(json.dumps(rows[i]) + "\n" for i in sorted(parts[0] + parts[1])))
        node = {"client": client, "data": {"train": str(file)}, "state": str(folder / f"state-{client}")}
        nodes.append(node)
    return nodes


def opened(config, node):
    return Node(RunConfig.from_dict(config), NodeConfig(**node), RUN)


def remote_of(config, nodes, change=lambda kind, client, answer: answer):
    """Nodes opened again for every message, as by Flower's own processes."""

    def ask(kind, cohort, message_to):
        def answer(client):
            return change(kind, client, opened(config, nodes[client]).answer(kind, message_to(client)))

        yield from simulate_cohort(cohort, answer)

    facts = [node_facts(opened(config, node).facts().said(), CLIENTS) for node in nodes]
    tests = [fact.test_examples or 0 for fact in facts]
    return RemoteClients([fact.num_examples for fact in facts], ask, tests=tests)


@pytest.mark.parametrize("name", STAYS)
def test_sites_have_the_simulated_runs_scores_and_models(world, tmp_path, name):
    config = config_of(world, **STAYS[name])
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    nodes = node_configs(config, tmp_path)
    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote_of(config, nodes))
    lines = [metrics_of(tmp_path / kind) for kind in ("simulated", "deployed")]
    for a, b in zip(*lines, strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    assert set(lines[1][0]["baselines"]["local"]) == set(lines[1][-1]["sites"]) == {"0", "1"}
    own = Path(nodes[1]["state"]) / RUN / "adapter"
    assert own.exists() == (name in ("personal", "fedsa"))
    if not own.exists():
        return
    export_lora(tmp_path / "simulated", tmp_path / "lora", client="south")
    (_, pairs, head), (_, expected, its_head) = read_adapter(own), read_adapter(tmp_path / "lora")
    for layer, pair in pairs.items():
        torch.testing.assert_close(pair.B @ pair.A, expected[layer].B @ expected[layer].A, rtol=0, atol=1e-6)
    assert all(torch.allclose(head[n], its_head[n], atol=1e-6) for n in its_head)
    with pytest.raises(InputError, match="each node has its own model"):
        export_lora(tmp_path / "deployed", tmp_path / "other", client="south")


def test_a_private_start_looks_at_no_row_that_is_scored(world, tmp_path):
    config = config_of(
        world,
        method__init={"private": True, "head_warmup": None},
        evaluation={"at_clients": True},
        privacy={"epsilon": 30.0, "delta": 1e-3, "clip_norm": 0.5, "score_noise_multiplier": 10.0},
    )
    node = opened(config, node_configs(config, tmp_path)[1] | {"give_scores": True})
    drawn, scored = node.start._draw([24, 24])[1], node.data.client_tests[1]
    assert drawn == node.data.parts[1]
    assert scored
    assert not set(drawn) & set(scored)


def test_a_round_that_is_asked_again_begins_where_it_began(world, tmp_path):
    config = config_of(world, method__personal=True, evaluation={"at_clients": True})
    nodes = node_configs(config, tmp_path)
    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote_of(config, nodes))
    state, file = (
        load_checkpoint(tmp_path / "deployed" / "checkpoint").state,
        Path(nodes[0]["state"]) / RUN / FILE,
    )
    exchange = opened(config, nodes[0]).local_client.local_model.exchange

    def message(number):
        return broadcast(replace(state, round=number - 1), exchange, 0, exchange.whole)

    assert file.stat().st_mode & 0o77 == 0
    answers = [opened(config, nodes[0]).answer("train", message(2)) for _ in range(2)]
    assert answers[0] == answers[1]
    with pytest.raises(UpdateRejected, match="what this client keeps is of round 2"):
        opened(config, nodes[0]).answer("train", message(1))
    with pytest.raises(UpdateRejected, match="wrong round: expected one from 1 to 2, found 3"):
        opened(config, nodes[0]).answer("train", message(3))
    with pytest.raises(UpdateRejected, match="wrong round: expected one from 1 to 3, found 4"):
        opened(config, nodes[0]).answer("score", message(4))
    with pytest.raises(UpdateRejected, match="asks for no local baseline"):
        opened(config, nodes[0]).answer("alone", message(1))
    other = OwnPart(file.parent, config_digest(RunConfig.from_dict(changed(config, seed=5))))
    with pytest.raises(InputError, match="another config"):
        other.before(3)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match="cannot be read"):
        opened(config, nodes[0]).answer("train", message(2))


def test_an_owner_can_forbid_scores(world, tmp_path):
    """The site then trains on all of its rows; what it answers counts nothing."""
    config = config_of(world, evaluation={"at_clients": True}, federation__rounds=1)
    nodes = node_configs(config, tmp_path)
    nodes[1]["give_scores"] = False
    said = [opened(config, node).facts().said() for node in nodes]
    assert [(fact["num_examples"], fact["test_examples"]) for fact in said] == [(24, 6), (30, 0)]
    answers, lines = {}, []

    def keep(kind, client, answer):
        answers[kind, client] = answer
        return answer

    told = type("Told", (Silent,), {"stage": lambda self, text: lines.append(text)})()
    remote = remote_of(config, nodes, keep)
    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote, progress=told)
    assert list(metrics_of(tmp_path / "deployed")[-1]["sites"]) == ["0"]
    assert not wire.unpack(answers["score", 1])[1].any()
    assert any("no score of its own has south" in line for line in lines)
    limited = NodeConfig(**nodes[0] | {"give_scores": None, "limits": {"largest_epsilon": 1.0}})
    assert not limited.gives_scores


def tampered(answer, vector=None, **changes):
    header, numbers = wire.unpack(answer)
    return wire.pack(replace(header, **changes), numbers if vector is None else vector(numbers.clone()))


def more_right(numbers):
    numbers[6:9] += 1
    return numbers


HOSTILE = {
    "more rows": lambda answer: tampered(answer, num_examples=999),
    "counts of more rows": lambda answer: tampered(answer, vector=lambda v: v * 2),
    "negative": lambda answer: tampered(answer, vector=lambda v: -v),
    "more right than there can be": lambda answer: tampered(answer, vector=more_right),
    "not finite": lambda answer: tampered(answer, vector=lambda v: v * torch.nan),
    "another shape": lambda answer: tampered(answer, vector=lambda v: torch.zeros(1000)),
    "another layout": lambda answer: tampered(answer, layout="0" * 16),
    "another client": lambda answer: tampered(answer, client=0),
    "another round": lambda answer: tampered(answer, round=2),
    "no message": lambda answer: b"\x00" * 5,
    "an upload": lambda answer: answer + b"0" * 10_000_000,
}


@pytest.fixture(scope="module")
def honest(world):
    """(What asks for scores, a node's answer to it, and the answer's scores.)"""
    config = config_of(world, evaluation={"at_clients": True})
    party = opened(config, node_configs(config, world)[1])
    exchange, totals = party.local_client.local_model.exchange, party.data.task.totals
    start = party.local_client.local_model.start
    numbers = {f"{name}.R": factors.R for name, factors in start.items()}
    head = {name: p.detach() for name, p in party.base.task_head.items()}
    layout = exchange.down(exchange.rank)
    question = wire.pack(wire.Header("fed-sb", 1, layout.digest), layout.flatten(numbers | head))
    answer = party.answer("score", question)
    accept = partial(accepted_scores, exchange=exchange, totals=totals, round_number=1, registered=6)
    return accept, answer


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_score_is_refused(honest, name):
    accept, answer = honest
    assert 0 <= accept(Arrived(1, answer))["accuracy"] <= 1
    with pytest.raises(UpdateRejected) as refusal:
        accept(Arrived(1, HOSTILE[name](answer)))
    assert len(str(refusal.value)) <= 400


def test_a_refused_score_is_left_out_and_told_of_and_nobody_elses_is(world, tmp_path):
    config = config_of(world, evaluation={"at_clients": True}, federation__rounds=1)
    nodes, said = node_configs(config, tmp_path), []

    def change(kind, client, answer):
        return HOSTILE["counts of more rows"](answer) if (kind, client) == ("score", 1) else answer

    told = type("Told", (Silent,), {"client_ends": lambda self, *outcome: said.append(outcome)})()
    run(RunConfig.from_dict(config), tmp_path / "run", remote=remote_of(config, nodes, change), progress=told)
    assert list(metrics_of(tmp_path / "run")[-1]["sites"]) == ["0"]
    assert said == [(1, "wrong scores: its counts are not of 6 rows")] * 2


@pytest.mark.parametrize("tests", [-1, 10**9, True, "6", 2.5])
def test_a_hello_with_a_wrong_count_of_test_rows_is_refused(tests):
    facts = {"client": 0, "num_examples": 5, "base_digest": "0" * 16, "test_examples": tests}
    with pytest.raises(UpdateRejected, match="test_examples"):
        node_facts(facts, 2)


def test_noised_scores_of_a_fixed_seed_are_the_simulated_ones(world, tmp_path):
    """Each node charges its own, and the server keeps the same account of it."""
    fixed = {"noise_multiplier": 2.0, "score_noise_multiplier": 3.0, "delta": 1e-3, "insecure_seed": 3}
    config = config_of(world, evaluation={"at_clients": True}, privacy=fixed)
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    nodes = node_configs(config, tmp_path)
    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote_of(config, nodes))
    lines = [metrics_of(tmp_path / kind) for kind in ("simulated", "deployed")]
    for a, b in zip(*lines, strict=True):
        assert set(a["sites"]) == {"0", "1"}
        assert a | {"seconds": 0} == b | {"seconds": 0}
    own, servers = (
        read_spends(folder / LEDGER) for folder in (tmp_path / "state-1" / RUN, tmp_path / "deployed")
    )
    assert [(spend.phase, spend.round) for spend in own] == [
        ("score", 0), ("round", 1), ("score", 1), ("round", 2), ("score", 2),
    ]  # fmt: skip
    assert own == [spend for spend in servers if spend.client == 1]


def test_nodes_keep_their_control_variates_as_simulated_clients_do(world, tmp_path):
    config = config_of(
        world,
        evaluation={"at_clients": True},
        federation__control_variates=True,
        training__optimizer="sgd",
        training__learning_rate=0.05,
    )
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    nodes = node_configs(config, tmp_path)
    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote_of(config, nodes))
    both = [load_checkpoint(tmp_path / kind / "checkpoint") for kind in ("simulated", "deployed")]
    assert torch.equal(both[0].state.vector, both[1].state.vector)
    assert both[0].state.memory.keys() == both[1].state.memory.keys() != set()
    kept = OwnPart(Path(nodes[1]["state"]) / RUN, config_digest(RunConfig.from_dict(config))).before(3)
    assert {n: t.tolist() for n, t in kept.items()} == {n: t.tolist() for n, t in both[0].kept[1].items()}


def test_the_first_exchange_of_a_round_pays_for_the_second(world, tmp_path):
    """With noise that nobody knows; asked again, the second answer is the same and costs nothing."""
    privacy, sent = {"noise_multiplier": 2.0, "delta": 1e-3}, {}
    config = config_of(
        world, evaluation={"every": None}, data__client_test=None, privacy=privacy, method__name="fedask"
    )
    nodes = node_configs(config, tmp_path)

    def ask_again(kind, client, answer):
        if kind == "train" and wire.header_of(answer).exchange == 2:
            sent[client, wire.header_of(answer).round] = answer
        return answer

    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote_of(config, nodes, ask_again))
    assert set(sent) == {(0, 1), (1, 1), (0, 2), (1, 2)}
    assert not any(line["rejected"] for line in metrics_of(tmp_path / "deployed"))
    for folder in (tmp_path / "state-1" / RUN, tmp_path / "deployed"):
        own = [spend for spend in read_spends(folder / LEDGER) if spend.client == 1]
        assert [(spend.phase, spend.round) for spend in own] == [("round", 1), ("round", 2)]


def test_a_second_question_without_a_first_is_refused_and_costs_nothing(world, tmp_path):
    privacy = {"noise_multiplier": 2.0, "delta": 1e-3}
    config = config_of(
        world, evaluation={"every": None}, data__client_test=None, privacy=privacy, method__name="fedask"
    )
    node = opened(config, node_configs(config, tmp_path)[0])
    layout = node.local_client.local_model.exchange.question()
    header = wire.Header("fedask", 1, layout.digest, exchange=2)
    with pytest.raises(UpdateRejected, match="no first answer in this round"):
        node.answer("train", wire.pack(header, torch.zeros(layout.size)))
    assert not (node.folder / LEDGER).exists()


def test_a_run_that_asks_for_no_scores_gets_none(world, tmp_path):
    config = config_of(world, evaluation={"every": None}, data__client_test=None)
    config["data"]["test"] = config["data"]["train"]
    (tmp_path / "0.jsonl").write_text(Path(config["data"]["train"]).read_text())
    node = {"client": 0, "data": {"train": str(tmp_path / "0.jsonl")}, "state": str(tmp_path / "state")}
    party = opened(config, node)
    exchange = party.local_client.local_model.exchange
    message = wire.pack(wire.Header("fed-sb", 1, exchange.down(4).digest), torch.zeros(exchange.down(4).size))
    with pytest.raises(UpdateRejected, match="asks for no scores"):
        party.answer("score", message)
    assert "test_examples" not in party.facts().said()


def test_nodes_get_folders_of_their_names(world, tmp_path):
    config = RunConfig.from_dict(config_of(world, federation__sites=["north", "a/../b"]))
    write_deployment(tmp_path / "d", config, host="fl.example.org", port=9092)
    assert sorted(path.name for path in (tmp_path / "d" / "nodes").iterdir()) == ["client-1", "north"]
    assert "client: 0   # north" in (tmp_path / "d" / "nodes" / "north" / "node.yaml").read_text()
    assert "client-0.pub" not in (tmp_path / "d" / "nodes" / "client-1" / "make-key.sh").read_text()
    pooled = RunConfig.from_dict(config_of(world, evaluation__baselines=["pooled"]))
    with pytest.raises(InputError, match="pooled is for simulated runs"):
        write_deployment(tmp_path / "p", pooled, host="h", port=9092)
    three = config.federation.model_copy(update={"clients": 3})
    with pytest.raises(InputError, match=r"federation.sites \(--names\): expected 3 names"):
        write_deployment(tmp_path / "e", config.model_copy(update={"federation": three}), host="h", port=9092)
