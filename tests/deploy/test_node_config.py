"""A party's own config, and what it refuses."""

import json
import math

import pytest

from fedsb import RunConfig
from fedsb.deploy.node_bounds import MOST, check_bounds, check_steps
from fedsb.deploy.node_config import NodeConfig, check_limits, check_run, config_digest
from fedsb.errors import InputError

RUN = {
    "model": {"path": "m"},
    "task": {"kind": "classification", "text": ["note"], "labels": ["no", "yes"]},
    "data": {"train": "t.jsonl", "test": "e.jsonl"},
    "federation": {"clients": 2},
    "method": {"init": {"kind": "weights"}},
}
PRIVATE = {"unit": "example", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 0.5}


def node(tmp_path, **limits):
    file = tmp_path / "node.yaml"
    file.write_text("client: 1\ndata: {train: notes.csv, columns: {note: text, label: label}}\nstate: kept\n")
    return NodeConfig.from_yaml(file, [f"limits.{key}={value}" for key, value in limits.items()])


def run_config(privacy=PRIVATE, **federation):
    values = RUN | {"federation": {"clients": 2} | federation, "privacy": privacy}
    return RunConfig.from_dict(values)


@pytest.mark.parametrize("privacy", [PRIVATE, None])
def test_without_limits_every_run_is_accepted(tmp_path, privacy):
    check_limits(node(tmp_path), run_config(privacy))


def test_a_run_within_the_limits_is_accepted(tmp_path):
    check_limits(
        node(tmp_path, largest_epsilon=3, largest_delta=1e-5, smallest_clip_norm=0.5), run_config(PRIVATE)
    )


@pytest.mark.parametrize(
    ("limits", "privacy", "message"),
    [
        ({"largest_epsilon": 2}, PRIVATE, r"largest_epsilon: .*at most 2, and the run wants 3"),
        ({"largest_epsilon": 5}, None, r"largest_epsilon: .*no such privacy"),
        ({"largest_epsilon": 5}, PRIVATE | {"unit": "client"}, r"largest_epsilon: .*no such privacy"),
        ({"largest_epsilon": 5}, PRIVATE | {"insecure_seed": 1}, r"largest_epsilon: .*no such privacy"),
        (
            {"largest_epsilon": 5},
            PRIVATE | {"epsilon": None, "noise_multiplier": 1.0},
            r"largest_epsilon: .*leaves it open",
        ),
        ({"largest_delta": 1e-6}, PRIVATE, r"largest_delta: .*wants 1e-05"),
        ({"largest_delta": 1e-6}, PRIVATE | {"delta": None}, r"largest_delta: .*leaves it open"),
        ({"smallest_clip_norm": 1}, PRIVATE, r"smallest_clip_norm: .*at least 1, and the run wants 0.5"),
    ],
)
def test_a_run_beyond_a_limit_is_refused_with_both_keys(tmp_path, limits, privacy, message):
    with pytest.raises(InputError, match=message):
        check_limits(node(tmp_path, **limits), run_config(privacy))


def test_a_number_outside_the_federation_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"number 1, the run has 1 clients"):
        check_limits(node(tmp_path), run_config(clients=1))


def test_wrong_keys_are_named(tmp_path):
    file = tmp_path / "node.yaml"
    file.write_text("client: -1\ndata: {trian: x}\nstate: kept\nlimitz: {}\n")
    with pytest.raises(InputError) as fault:
        NodeConfig.from_yaml(file)
    assert {"client:", "data.train:", "data.trian:", "limitz:"} <= set(str(fault.value).split())
    assert "Did you mean limits" in str(fault.value)


# More than limits that numbers can break


@pytest.mark.parametrize("limit", ["largest_epsilon=5", "largest_delta=1.0e-3", "smallest_clip_norm=0.1"])
@pytest.mark.parametrize(
    "privacy", [None, PRIVATE | {"unit": "client"}, PRIVATE | {"insecure_seed": 1}], ids=str
)
def test_with_any_limit_a_run_must_protect_examples(tmp_path, limit, privacy):
    key, value = limit.split("=")
    party = node(tmp_path, **{key: value})
    with pytest.raises(InputError, match=rf"^limits.{key}: .*allow_unprotected: true here"):
        check_limits(party, run_config(privacy))
    allowed = party.model_copy(update={"allow_unprotected": True})
    if privacy is None or privacy["unit"] == "client":
        check_limits(allowed, run_config(privacy))


@pytest.mark.parametrize("limit", [{"largest_delta": 1e-3}, {"smallest_clip_norm": 0.1}])
def test_with_any_limit_a_run_must_name_its_epsilon(tmp_path, limit):
    privacy = PRIVATE | {"epsilon": None, "noise_multiplier": 1e-6}
    with pytest.raises(InputError, match=r"leaves privacy\.epsilon open"):
        check_limits(node(tmp_path, **limit), run_config(privacy))


@pytest.mark.parametrize("key", ["epsilon", "delta", "clip_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_that_is_not_finite_passes_a_limit(tmp_path, key, value):
    """Neither the config's own check nor, should that be passed by, the comparison with the limit."""
    with pytest.raises(InputError, match=f"privacy.{key}"):
        run_config(PRIVATE | {key: value})
    config = run_config(PRIVATE)
    config = config.model_copy(update={"privacy": config.privacy.model_copy(update={key: value})})
    party = node(tmp_path, largest_epsilon=3, largest_delta=1e-5, smallest_clip_norm=0.5)
    if key != "clip_norm" or math.isnan(value):
        with pytest.raises(InputError, match=f"privacy.{key}"):
            check_limits(party, config)


# Columns


def test_a_run_may_use_listed_columns_alone(tmp_path):
    config = RunConfig.from_dict(RUN | {"task": RUN["task"] | {"text": ["note", "name"]}})
    with pytest.raises(InputError, match=r"data.columns: the run uses the column 'name'"):
        check_run(node(tmp_path), config)
    prompt = {"kind": "causal-lm", "prompt": "{note} {{name}} {ssn}:", "response": "label"}
    with pytest.raises(InputError, match=r"the column 'ssn'"):
        check_run(node(tmp_path), RunConfig.from_dict(RUN | {"task": prompt}))
    marked = prompt | {"prompt": "{note} {ssn:optional}:"}
    with pytest.raises(InputError, match=r"the column 'ssn'"):
        check_run(node(tmp_path), RunConfig.from_dict(RUN | {"task": marked}))
    check_run(node(tmp_path), run_config(None))


def test_with_limits_columns_must_be_listed(tmp_path):
    party = node(tmp_path, largest_epsilon=3)
    bare = party.model_copy(update={"data": party.data.model_copy(update={"columns": {}})})
    with pytest.raises(InputError, match=r"data.columns: with limits this party must list"):
        check_run(bare, run_config())


# Approval


def test_only_approved_configs_pass_where_any_are_named_or_there_is_a_limit(tmp_path):
    digest = config_digest(run_config())
    free, limited = node(tmp_path), node(tmp_path, largest_epsilon=3)
    for party in (free.model_copy(update={"approved": []}), limited):
        with pytest.raises(InputError, match=f"{digest}.*fedsb deploy check.*add the digest to approved"):
            check_run(party, run_config())
        check_run(party.model_copy(update={"approved": [digest]}), run_config())
    check_run(free, run_config())


def test_a_party_that_approves_anything_is_told_once_for_each_config(tmp_path, caplog):
    for seed in (111, 112, 111, 111):
        check_run(node(tmp_path), RunConfig.from_dict(RUN | {"seed": seed}))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_an_approved_digest_must_be_one(tmp_path):
    node(tmp_path)
    with pytest.raises(InputError, match=r"approved"):
        NodeConfig.from_yaml(tmp_path / "node.yaml", ["approved=[deadbeef]"])


def test_the_digest_is_of_the_meaning(tmp_path):
    digest = config_digest(run_config())
    assert digest == config_digest(RunConfig.from_dict(json.loads(run_config().model_dump_json())))
    (tmp_path / "run.yaml").write_text(run_config().to_yaml())
    assert digest == config_digest(RunConfig.from_yaml(tmp_path / "run.yaml"))
    assert len(digest) == 64
    here = run_config().data.model_copy(update={"train": "elsewhere", "test": "elsewhere"})
    assert digest == config_digest(run_config().model_copy(update={"data": here}))


@pytest.mark.parametrize(
    "change",
    [
        "model.path=evil/backdoor",
        "model.dtype=float16",
        "task.text=[ssn]",
        "task.labels=[a, b]",
        "data.drop_unlabelled=true",
        "data.columns={train: {note: ssn}}",
        "method.init.public=x",
        "method.targets=[dense]",
        "privacy.epsilon=3.0000001",
        "privacy.noise_multiplier=1",
        "federation.rounds=4",
        "training.epochs=1.5",
        "seed=1",
        "tracking=[wandb]",
        "evaluation.every=2",
    ],
)
def test_the_digest_covers_what_a_server_can_set(tmp_path, change):
    (tmp_path / "run.yaml").write_text(run_config().to_yaml())
    changed = RunConfig.from_yaml(tmp_path / "run.yaml", [change])
    assert config_digest(changed) != config_digest(run_config())


# Absurd sizes

ABSURD = {
    "training.epochs": 1e7,
    "training.batch_size": 10**12,
    "training.accumulation": 10**12,
    "training.max_length": 10**9,
    "training.threads": 10**9,
    "federation.rounds": 10**6,
    "federation.clients": 20_000_000,
    "method.rank": 10**9,
    "method.heads": 10**9,
    "method.experts.count": 10**9,
    "method.init.samples": 10**15,
    "method.init.batch_size": 10**15,
    "method.init.head_warmup.rounds": 10**9,
    "method.init.head_warmup.steps": 10**9,
    "privacy.clip_norm": 1e30,
}


def test_every_bound_has_its_case():
    assert set(ABSURD) == set(MOST)


@pytest.mark.parametrize("key", ABSURD)
def test_absurd_sizes_are_refused_by_name(tmp_path, key):
    (tmp_path / "run.yaml").write_text(run_config().to_yaml())
    section = key.rpartition(".")[0]
    there = [f"{section}={{}}"] if section in ("method.init.head_warmup", "method.experts") else []
    config = RunConfig.from_yaml(tmp_path / "run.yaml", [*there, f"{key}={ABSURD[key]}"])
    with pytest.raises(InputError, match=rf"^{key}: a node takes at most"):
        check_bounds(config)


def test_sizes_that_are_absurd_together_are_refused(tmp_path):
    check_bounds(run_config())
    with pytest.raises(InputError, match="rounds x clients"):
        check_bounds(run_config(rounds=20_000, clients=100_000))
    labels = RUN["task"] | {"labels": [f"l{i}" for i in range(10_001)]}
    with pytest.raises(InputError, match=r"task.labels"):
        check_bounds(RunConfig.from_dict(RUN | {"task": labels}))
    prompt = {"kind": "causal-lm", "prompt": "{note}" * 20_000, "response": "label"}
    with pytest.raises(InputError, match=r"task.prompt"):
        check_bounds(RunConfig.from_dict(RUN | {"task": prompt}))
    check_steps(run_config(rounds=100), 60_000)
    with pytest.raises(InputError, match="optimizer steps"):
        check_steps(run_config(rounds=20_000), 60_000)
