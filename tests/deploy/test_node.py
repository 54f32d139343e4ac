"""Parties on their own machines: a run of theirs equals the simulated run of the same config."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
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
from fedsb.adapter.linear import features
from fedsb.common.files import LOCK, alone
from fedsb.deploy import node_data
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig, config_digest
from fedsb.deploy.node_folder import make_private
from fedsb.errors import InputError, RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.server import Failed
from fedsb.federation.start.messages import pack_start
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort

CLIENTS = 3
RUN = "1" * 32


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 3,
        "federation__clients": CLIENTS,
        "task__labels": ["pos", "neg", "flat"],
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def node_files(config, parts, folder):
    """Each party's rows in a file of its own, under column names of its own."""
    rows = lines_of(Path(config["data"]["train"]))
    nodes = []
    for client, part in enumerate(parts):
        renamed = [{"note" if k == "text" else k: v for k, v in rows[i].items()} for i in part]
        (folder / f"{client}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
        nodes.append(
            {
                "client": client,
                "data": {
                    "train": str(folder / f"{client}.jsonl"),
                    "columns": {"text": "note", "label": "label", "score": "score"},
                },
                "state": str(folder / f"state-{client}"),
            }
        )
    return nodes


def in_one_process(config, nodes):
    """Peers that are nodes in this process, opened again for every message, as by Flower's own processes."""

    def answer(kind, client, message):
        return Node(RunConfig.from_dict(config), NodeConfig(**nodes[client]), RUN).answer(kind, message)

    def ask(kind, cohort, message_to):
        yield from simulate_cohort(cohort, lambda client: answer(kind, client, message_to(client)))

    return ask


def both(world, config, folder, **node_changes):
    simulated = run(RunConfig.from_dict(config), folder / "simulated")
    parts = parts_of(folder / "simulated")
    nodes = [node | node_changes for node in node_files(config, parts, folder)]
    for node in nodes:
        write_config(folder / f"node-{node['client']}.yaml", node)
    remote = RemoteClients([len(part) for part in parts], in_one_process(config, nodes))
    return simulated, run(RunConfig.from_dict(config), folder / "deployed", remote=remote)


def assert_equal_runs(folder):
    for a, b in zip(metrics_of(folder / "simulated"), metrics_of(folder / "deployed"), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    one, other = (load_checkpoint(folder / name / "checkpoint") for name in ("simulated", "deployed"))
    torch.testing.assert_close(one.state.vector, other.state.vector, rtol=0, atol=1e-6)
    for name, total in one.state.base.total.items():
        torch.testing.assert_close(total, other.state.base.total[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["fed-sb", "fedit", "fedex-lora", "flora", "fedsvd", "ravan"])
def test_nodes_do_what_the_simulation_does(world, tmp_path, method):
    config = config_of(world, method__name=method, federation__clients_per_round=2)
    both(world, config, tmp_path)
    assert_equal_runs(tmp_path)


STARTS = {
    "factors": {"samples": 48, "head_warmup": {"rounds": 2, "steps": 15}},
    "sketch": {"samples": 20, "upload": "sketch", "head_warmup": None},
    "moments": {"samples": 20, "rule": "moments", "head_warmup": {"rounds": 1, "steps": 5}},
    "warm-up over W0": {"kind": "weights", "samples": 20, "head_warmup": {"rounds": 2, "steps": 15}},
    "fewer samples than clients": {"samples": 2, "head_warmup": {"rounds": 1, "steps": 5}},
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_from_the_nodes_gradients_is_the_simulated_one(world, tmp_path, name):
    both(world, config_of(world, method__init=STARTS[name], federation__rounds=1), tmp_path)
    assert_equal_runs(tmp_path)
    ours, theirs = (json.loads((tmp_path / n / "ledger.json").read_text()) for n in ("simulated", "deployed"))
    for a, b in zip(ours["entries"], theirs["entries"], strict=True):
        assert {**a, "bytes": 0} == {**b, "bytes": 0}
        assert b["bytes"] == pytest.approx(a["bytes"], rel=0.2, abs=1500)


def test_ranks_of_a_spectrum_are_the_simulated_ones(world, tmp_path):
    init = {"samples": 20, "ranks": "spectrum", "rule": "raw", "head_warmup": None}
    targets = ["query", "key", "intermediate.dense"]
    config = config_of(world, method__init=init, method__targets=targets, federation__rounds=1)
    both(world, config, tmp_path)
    assert_equal_runs(tmp_path)
    one, other = (load_checkpoint(tmp_path / n / "checkpoint").factors for n in ("simulated", "deployed"))
    ranks = {layer: part.A.shape[0] for layer, part in one.items()}
    assert ranks == {layer: part.A.shape[0] for layer, part in other.items()}
    assert len(set(ranks.values())) > 1


BAD_RANKS = {
    "too many numbers": ({}, 8, "ranks: their squares add up to 256, 64 is the most"),
    "beyond the ceiling": ({0: 9}, 1, "expected a rank from 1 to 8, found 9"),
    "below the floor": ({0: 0}, 4, "expected a rank from 1 to 8, found 0"),
    "wider than anything": ({0: 10_000}, 4, "bytes, 13336 is the most"),
    "B of another rank": ({}, 4, "tensors differ"),
}


@pytest.mark.parametrize("name", BAD_RANKS)
def test_ranks_that_the_config_does_not_allow_are_refused(world, tmp_path, name):
    """The server chooses; a node keeps nothing that costs more than what it agreed to."""
    init = {"samples": 20, "ranks": "spectrum", "head_warmup": None}
    config = config_of(world, method__init=init, federation__clients=1)
    node = node_files(config, [range(20)], tmp_path)[0]
    opened = Node(RunConfig.from_dict(config), NodeConfig(**node), RUN)
    layers = {name: features(layer) for name, layer in opened.base.targets.items()}
    others, rank, reason = BAD_RANKS[name]
    bases, wrong = {}, name == "B of another rank"
    for place, (layer, (out, n_in)) in enumerate(layers.items()):
        k = others.get(place, rank)
        bases[f"{layer}.A"] = torch.zeros(k, n_in, dtype=torch.bfloat16)
        bases[f"{layer}.B"] = torch.zeros(out, k + wrong, dtype=torch.bfloat16)
    assert len(layers) == 4
    with pytest.raises(UpdateRejected, match=reason):
        opened.answer("bases", pack_start({"kind": "bases", "round": 0}, bases))
    assert not list(tmp_path.rglob("bases.safetensors"))


def test_start_from_lora_with_a_warm_head(world, tmp_path):
    init = {"samples": 30, "head_warmup": {"rounds": 2, "steps": 15}}
    both(world, config_of(world, method__name="fedit", method__init=init, federation__rounds=1), tmp_path)
    assert_equal_runs(tmp_path)


def test_a_contributor_that_fails_is_left_out_of_the_start(world, tmp_path):
    config = config_of(world, method__init=STARTS["sketch"], federation__rounds=1)
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    parts = json.loads((tmp_path / "simulated" / "partition.json").read_text())["clients"]
    nodes = node_files(config, [parts[str(c)] for c in range(CLIENTS)], tmp_path)
    ask = in_one_process(config, nodes)

    def without_one(kind, cohort, message_to):
        for outcome in ask(kind, cohort, message_to):
            lost = kind == "contribute" and outcome.client == 1
            yield Failed(1, "went away") if lost else outcome

    remote = RemoteClients([len(part) for part in parts.values()], without_one)
    result = run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote)
    entries = json.loads((tmp_path / "deployed" / "ledger.json").read_text())["entries"]
    assert [e["clients"] for e in entries if e["what"] == "sketches of gradients"] == [2]
    assert metrics_of(result.folder)[-1]["clients"] == [0, 1, 2]


def test_no_contributor_ends_the_run_with_the_reason(world, tmp_path):
    config = config_of(world, method__init=STARTS["sketch"])
    remote = RemoteClients([20, 20, 20], lambda kind, cohort, message_to: [Failed(c, "away") for c in cohort])
    with pytest.raises(RunFailed, match="nobody contributed a gradient"):
        run(RunConfig.from_dict(config), tmp_path / "run", remote=remote)


@pytest.mark.parametrize("kind", ["warm-up", "contribute"])
def test_a_node_answers_no_question_its_config_does_not_ask_for(world, tmp_path, kind):
    """A server cannot get gradients or a head from a run that says it takes none."""
    config = config_of(world)
    (node_config,) = node_files(config, [range(30)], tmp_path)
    node = Node(RunConfig.from_dict(config), NodeConfig(**node_config), RUN)
    with pytest.raises(UpdateRejected, match="this run's config"):
        node.answer(kind, pack_start({"kind": kind, "round": 1}, {}))
    with pytest.raises(UpdateRejected, match="unknown question"):
        node.answer("examples", b"")


def test_raw_gradients_under_privacy_are_refused_by_the_node_too(world, tmp_path):
    privacy = {"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}
    config = config_of(world, privacy=privacy, method__init={"kind": "gradient", "head_warmup": None})
    (node_config,) = node_files(config, [range(30)], tmp_path)
    with pytest.raises(InputError, match="raw gradients"):
        Node(RunConfig.from_dict(config), NodeConfig(**node_config), RUN)


def test_with_client_level_privacy_of_a_fixed_seed(world, tmp_path):
    privacy = {"unit": "client", "epsilon": 8.0, "delta": 1e-2, "clip_norm": 0.5, "insecure_seed": 3}
    both(world, config_of(world, privacy=privacy, federation__weighting="uniform"), tmp_path)
    assert_equal_runs(tmp_path)


CHARGED = {"kind": "gradient", "private": True, "budget_share": 0.3, "samples": 30, "head_warmup": None}
EXAMPLES_PROTECTED = {"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}


def test_private_bases_of_a_fixed_seed_are_the_simulated_ones(world, tmp_path):
    privacy = EXAMPLES_PROTECTED | {"insecure_seed": 3}
    both(world, config_of(world, privacy=privacy, method__init=CHARGED), tmp_path)
    assert_equal_runs(tmp_path)


def test_private_bases_are_charged_at_the_node_and_at_the_server(world, tmp_path):
    config = config_of(world, privacy=EXAMPLES_PROTECTED, method__init=CHARGED)
    _, deployed = both(world, config, tmp_path)
    node_configrged = lines_of(tmp_path / "state-1" / RUN / "privacy.jsonl")
    servers = lines_of(tmp_path / "deployed" / "privacy.jsonl")
    assert [spend for spend in servers if spend["client"] == 1] == node_configrged
    assert [spend["phase"] for spend in node_configrged] == ["start", "round", "round", "round"]
    privacy = deployed.summary["privacy"]
    assert privacy["epsilon"] == pytest.approx(8.0, rel=0.01)
    assert privacy["epsilon_start"] == pytest.approx(0.3 * 8.0, rel=0.01)


def test_the_sample_behind_private_bases_is_drawn_from_the_nodes_own_secret(world, tmp_path):
    """The server knows the run's seed and could name the examples otherwise."""
    config = RunConfig.from_dict(config_of(world, privacy=EXAMPLES_PROTECTED, method__init=CHARGED))
    (node_config,) = node_files(config_of(world), [range(30)], tmp_path)
    runs = (RUN, RUN, "2" * 32)
    nodes = [Node(config, NodeConfig(**node_config), run) for run in runs]
    draws = {node.start.private.samples("private start", 0, 0).read(1).item() for node in nodes}
    assert len(draws) == 3
    secrets = [(tmp_path / f"state-0/{run}/private/sampling-secret") for run in runs[1:]]
    assert [secret.stat().st_mode & 0o777 for secret in secrets] == [0o600, 0o600]
    assert secrets[0].read_bytes() != secrets[1].read_bytes()


def test_a_node_sends_one_noised_sum_however_often_it_is_asked(world, tmp_path):
    """Two sums would tell more than was charged; one made again would be charged twice."""
    config = RunConfig.from_dict(config_of(world, privacy=EXAMPLES_PROTECTED, method__init=CHARGED))
    (node_config,) = node_files(config_of(world), [range(30)], tmp_path)
    answers = []
    for number in range(3):
        node = Node(config, NodeConfig(**node_config), RUN)
        head = {f"head.{name}": parameter + number for name, parameter in node.base.task_head.items()}
        question = pack_start({"kind": "contribute", "round": 0}, head | {"sizes": torch.tensor([30, 9, 9])})
        answers.append(node.answer("contribute", question))
    assert answers[0] == answers[1] == answers[2]
    assert len(lines_of(tmp_path / "state-0" / RUN / "privacy.jsonl")) == 1


OWNED = EXAMPLES_PROTECTED | {"owner": "score", "epsilon": None, "noise_multiplier": 2.0}


def test_owners_are_protected_as_in_the_simulated_run(world, tmp_path):
    """The server accounts for nodes without knowing how many owners they have."""
    dealt = {"kind": "by-column", "column": "score"}
    config = config_of(world, privacy=OWNED | {"insecure_seed": 3}, federation__partition=dealt)
    both(world, config, tmp_path)
    assert_equal_runs(tmp_path)
    charged = lines_of(tmp_path / "state-1" / RUN / "privacy.jsonl")
    assert charged == [s for s in lines_of(tmp_path / "deployed/privacy.jsonl") if s["client"] == 1]


def test_a_node_with_columns_gives_the_owners_only_if_it_lists_them(world, tmp_path):
    (node_config,) = node_files(config_of(world), [range(30)], tmp_path)
    config = RunConfig.from_dict(config_of(world, privacy=OWNED))
    node = Node(config, NodeConfig(**node_config), RUN)
    assert node.data.owners == (3, 0, 0)
    assert node.private.plans[0].units == 3
    assert node.private.guard.account.unit == "owner (score)"
    open_delta = RunConfig.from_dict(config_of(world, privacy=OWNED | {"delta": None}))
    with pytest.raises(InputError, match=r"privacy\.delta: name it beside privacy\.owner"):
        Node(open_delta, NodeConfig(**node_config), RUN)
    del node_config["data"]["columns"]["score"]
    with pytest.raises(InputError, match="the run uses the column 'score', which this party does not give"):
        Node(config, NodeConfig(**node_config), RUN)


@pytest.mark.parametrize("method", ["flora", "fedex-lora"])
def test_a_node_that_lost_its_base_weights_is_left_out_until_it_has_them_again(world, tmp_path, method):
    """Its disk is gone after round 2: the last addition alone would leave it on other weights, unnoticed."""
    config = config_of(world, method__name=method, federation__rounds=4)
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    parts = json.loads((tmp_path / "simulated" / "partition.json").read_text())["clients"]
    nodes = node_files(config, [parts[str(c)] for c in range(CLIENTS)], tmp_path)
    answer, asked = in_one_process(config, nodes), []

    def ask(kind, cohort, message_to):
        asked.append(kind)
        if len(asked) == 3:
            shutil.rmtree(tmp_path / "state-1")
        return answer(kind, cohort, message_to)

    remote = RemoteClients([len(part) for part in parts.values()], ask)
    lines = metrics_of(run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote).folder)
    assert [line["clients"] for line in lines[1:]] == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 1, 2]]
    assert "wrong base weights" in lines[3]["rejected"][0]["reason"]


def test_base_weights_of_a_later_round_are_not_trained_on(world, tmp_path):
    """A server that begins again under the same name would have nodes resume from the former run's end."""
    config = config_of(world, method__name="flora")
    both(world, config, tmp_path)
    nodes = [yaml.safe_load((tmp_path / f"node-{c}.yaml").read_text()) for c in range(CLIENTS)]
    remote = RemoteClients([20, 20, 20], in_one_process(config, nodes))
    with pytest.raises(RunFailed, match="wrong base weights"):
        run(RunConfig.from_dict(config), tmp_path / "again", remote=remote)


def test_every_answer_is_kept_if_wanted(world, tmp_path):
    both(world, config_of(world, federation__rounds=2), tmp_path, audit=True)
    sent = sorted((tmp_path / "state-0" / RUN / "sent").glob("*.json"))
    said = [json.loads(file.read_text()) for file in sent]
    assert [(each["kind"], each["round"]) for each in said] == [("train", 1), ("train", 2)]
    lines = metrics_of(tmp_path / "deployed")
    sizes = [file.with_suffix(".safetensors").stat().st_size for file in sent]
    assert lines[1]["upload_bytes"] == CLIENTS * sizes[0]
    facts = Node(
        RunConfig.from_dict(config_of(world)), NodeConfig.from_yaml(tmp_path / "node-0.yaml"), RUN
    ).facts()
    assert json.loads((sent[0].parent / "00003.json").read_text())["kind"] == "hello"
    assert facts.said().items() <= json.loads((sent[0].parent / "00003.json").read_text()).items()


def test_parties_agree_on_a_regression_by_the_config(world, tmp_path):
    task = {"labels": None, "label": "score", "regression": True}
    _, deployed = both(world, config_of(world, **{f"task__{k}": v for k, v in task.items()}), tmp_path)
    assert_equal_runs(tmp_path)
    assert "pearson" in deployed.summary["final"]


def test_a_partys_rows_are_one_file(world, tmp_path):
    (node_config,) = node_files(config_of(world), [range(30)], tmp_path)
    for several in (str(tmp_path), str(tmp_path / "*.jsonl")):
        own = NodeConfig(**node_config | {"data": {"train": several}})
        with pytest.raises(InputError, match="a node's rows are one file"):
            Node(RunConfig.from_dict(config_of(world)), own, RUN)


def test_parties_must_agree_on_classes(world, tmp_path):
    config = config_of(world, task__labels=None)
    (node_config,) = node_files(config, [range(30)], tmp_path)
    with pytest.raises(InputError, match=r"task.labels: .*list them"):
        Node(RunConfig.from_dict(config), NodeConfig(**node_config), RUN)
    with pytest.raises(InputError, match=r"task.labels"):
        run(RunConfig.from_dict(config), tmp_path / "run", remote=RemoteClients([30], lambda *a: []))


def test_the_digest_tells_other_weights_and_not_another_head(world, tmp_path):
    def digest(**changes):
        config = changed(config_of(world), **changes)
        (node_config,) = node_files(config, [range(30)], tmp_path)
        return Node(RunConfig.from_dict(config), NodeConfig(**node_config), RUN).facts().base_digest

    tiny_bert(tmp_path / "bert")
    first = digest()
    assert digest(seed=5) == first
    assert digest(model__path=str(tmp_path / "bert")) == first
    assert digest(model__dtype="bfloat16") != first


# What the server is told before the run


def told(world, folder, rows, *, limits=None, labels=("pos", "neg", "flat"), **changes):
    """What a party of these rows answers to hello."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.from_dict(
        config_of(world, task__labels=list(labels), federation__clients=1, **changes)
    )
    node_config = {
        "client": 0,
        "data": {"train": str(folder / "rows.jsonl"), "columns": {"text": "text", "label": "label"}},
        "state": str(folder / "state"),
        "limits": limits or {},
        "approved": [config_digest(config)],
    }
    return Node(config, NodeConfig(**node_config), RUN).facts()


LIMITED = {"largest_epsilon": 8.0}


def test_the_number_of_rows_is_rounded_where_anything_is_protected(world, tmp_path):
    rows = [{"text": f"w{i % 16} good", "label": "pos"} for i in range(104)]
    noise = EXAMPLES_PROTECTED | {"noise_multiplier": 30.0}
    assert told(world, tmp_path, rows).num_examples == 104
    for limits, privacy in ((LIMITED, noise), ({}, noise), ({"largest_delta": 1e-3}, noise)):
        assert told(world, tmp_path, rows, limits=limits, privacy=privacy).num_examples == 100
        assert told(world, tmp_path, rows[:99], limits=limits, privacy=privacy).num_examples == 99
    assert told(world, tmp_path, [*rows, rows[0]], privacy=noise).num_examples == 110


def test_hello_says_its_three_facts_and_nothing_else(world, tmp_path):
    """The same for any rows of the number, if the server says to drop those without a label, too."""
    rows = [{"text": f"w{i} good", "label": "pos"} for i in range(9)]
    others = [{"text": "bad " * 9, "label": "neg"} for _ in range(9)]
    facts = [told(world, tmp_path, each, data__drop_unlabelled=True) for each in (rows, others)]
    assert facts[0] == facts[1]
    assert set(facts[0].said()) == {"client", "num_examples", "base_digest"}
    assert facts[0].num_examples == 9
    assert not (tmp_path / "state").exists()


FINE = {"text": "w1 good", "label": "pos"}
FAULTS = {
    "a label that is not listed": [FINE, {"text": "w2", "label": "syphilis"}],
    "no label": [FINE, {"text": "w2", "label": None}],
    "no text": [FINE, {"text": None, "label": "pos"}],
    "a text that is a list": [FINE, {"text": ["w2"], "label": "pos"}],
    "no such column": [{"label": "pos"}],
    "no rows": [],
    "a label that is a list": [{"text": "w2", "label": ["pos"]}],
}


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_rows_that_do_not_fit_all_fail_alike(world, tmp_path, name, drop):
    """The server is told the error's type alone (`client_app`): it must not say which fault it is."""
    with pytest.raises(InputError) as fault:
        told(world, tmp_path, FAULTS[name], data__drop_unlabelled=drop)
    assert type(fault.value) is InputError


def test_a_fault_of_reading_that_nobody_foresaw_is_alike_too(world, tmp_path, monkeypatch):
    def fails(*arguments):
        raise KeyError("a cell")

    monkeypatch.setattr(node_data, "read_rows", fails)
    with pytest.raises(InputError) as fault:
        told(world, tmp_path, [FINE])
    assert type(fault.value) is InputError


def test_only_listed_columns_reach_the_task(world, tmp_path):
    config = RunConfig.from_dict(config_of(world, task__text=["site"], federation__clients=1))
    node_config = NodeConfig(client=0, data={"train": config.data.train}, state=str(tmp_path))
    assert Node(config, node_config, RUN).facts()
    data = node_config.data.model_copy(update={"columns": {"text": "text"}})
    listed = node_config.model_copy(update={"data": data})
    with pytest.raises(InputError, match=r"data.columns: the run uses the column 'site'"):
        Node(config, listed, RUN)
    renamed = config_of(world, federation__clients=1)
    data = node_config.data.model_copy(update={"columns": {"text": "key", "label": "label"}})
    renamed_columns = node_config.model_copy(update={"data": data})
    node = Node(RunConfig.from_dict(renamed), renamed_columns, RUN)
    assert {len(example["input_ids"]) for example in node.data.train} == {3}  # [CLS] key [SEP]


def test_every_message_has_the_registered_count(world, tmp_path):
    """Of 104 rows 100 are registered: the plan's chances are by 100, and every row has its chance."""
    rows = [{"text": f"w{i % 16} good", "label": "pos"} for i in range(104)]
    noise = EXAMPLES_PROTECTED | {"noise_multiplier": 30.0}
    told(world, tmp_path, rows, privacy=noise)
    config = RunConfig.from_dict(
        config_of(world, federation__clients=1, privacy=noise, method__init=CHARGED | {"samples": 100})
    )
    node_config = {
        "client": 0,
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "state": str(tmp_path / "state"),
    }
    node = Node(config, NodeConfig(**node_config), RUN)
    for plan in (node.private.plans[0], node.private.starts[0]):
        assert (plan.num_examples, plan.rows) == (100, 104)
    assert node.private.starts[0].sampling_probability == 1.0
    head = {f"head.{n}": p for n, p in node.base.task_head.items()}

    def question(count):
        return pack_start({"kind": "contribute", "round": 0}, head | {"sizes": torch.tensor([count])})

    with pytest.raises(UpdateRejected, match="wrong sizes: this party has 100 examples"):
        node.answer("contribute", question(104))
    looked_at = []
    private, sample = node.start.private, type(node.start.private).sample

    def watched(self, client):
        looked_at.extend(sample(self, client))
        return looked_at

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(private), "sample", watched)
        node.answer("contribute", question(100))
    assert looked_at == list(range(104))
    bases = {n: torch.ones(t.shape, dtype=torch.bfloat16) for n, t in node.start._bases_like().items()}
    node.answer("bases", pack_start({"kind": "bases", "round": 0, "more": "of the server's"}, bases))
    exchange = node.local_client.local_model.exchange
    down = exchange.message(1, exchange.whole, None)
    answer = node.answer("train", wire.pack(wire.Header("fed-sb", 1, down.digest), torch.zeros(down.size)))
    assert wire.unpack(answer)[0].num_examples == 100
    assert b"of the server" not in (tmp_path / "state" / RUN / "bases.safetensors").read_bytes()


@pytest.mark.parametrize(
    "sizes",
    [
        torch.tensor([30, 9]),
        torch.tensor([30, -9, 9]),
        torch.tensor([30, 2**62, 9]),
        torch.tensor([30.0, 9.0, 9.0]),
        torch.tensor([[30, 9, 9]]),
        torch.tensor([29, 9, 9]),
        None,
    ],
    ids=str,
)
def test_sizes_that_make_no_sense_are_refused(world, tmp_path, sizes):
    config = config_of(world, method__init=STARTS["sketch"])
    (node_config,) = node_files(config, [range(30)], tmp_path)
    node = Node(RunConfig.from_dict(config), NodeConfig(**node_config), RUN)
    head = {f"head.{n}": p for n, p in node.base.task_head.items()}
    more = {} if sizes is None else {"sizes": sizes}
    with pytest.raises(UpdateRejected):
        node.answer("contribute", pack_start({"kind": "contribute", "round": 0}, head | more))


def test_one_process_at_a_time_answers_from_a_runs_folder(world, tmp_path):
    (node_config,) = node_files(config_of(world), [range(30)], tmp_path)
    node = Node(RunConfig.from_dict(config_of(world)), NodeConfig(**node_config), RUN)
    make_private(node.folder)
    with alone(node.folder / LOCK, "another"), pytest.raises(RunFailed, match="another process works on it"):
        node.answer("bases", b"")
    assert node.facts().client == 0, "hello writes nothing"
