"""What does not go together in a mixture's config: one clear line each, before anything is read."""

import json

import pytest
from run_helpers import classification_config, main_status, tiny_bert, write_config, write_data, write_rows

from fedsb import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.method import gate_after, hard_rounds
from fedsb.errors import InputError


def config_of(folder, **changes):
    few = {
        "method__name": "fed-mixer",
        "method__experts": {"by": "site"},
        "method__init__head_warmup": None,
        "federation": {"clients": 4, "rounds": 4, "partition": {"kind": "by-column", "column": "site"}},
    }
    return classification_config(folder / "bert", folder / "data", **few | changes)


ASSIGNED = {"method__experts": {}, "federation__client_experts": [0, 1, 0, 1]}
REFUSED = {
    "one core": ({"method__name": "fed-sb"}, "method.experts: fed-sb has one core"),
    "one core by client": (
        {"method__name": "fed-sb", "method__experts": ..., "federation__client_experts": [0, 0, 1, 1]},
        "federation.client_experts: fed-sb has one core",
    ),
    "no experts": ({"method__experts": ...}, "must know whose data each expert is for"),
    "nothing said": ({"method__experts": {}}, "nothing says which expert is whose"),
    "two ways": ({"method__experts": {"by": "site", "count": 2}}, "leave one of them"),
    "two ways by client": (
        {"method__experts": {"by": "site"}, "federation__client_experts": [0, 0, 1, 1]},
        "method.experts.by and federation.client_experts: each says",
    ),
    "one expert": (ASSIGNED | {"federation__client_experts": [0, 0, 0, 0]}, "one expert is one core"),
    "an expert that nobody holds": (
        ASSIGNED | {"federation__client_experts": [0, 2, 0, 2]},
        "nobody holds expert 1 of 3",
    ),
    "too few numbers": (ASSIGNED | {"federation__client_experts": [0, 1]}, "expected 4 numbers"),
    "a number too large": (
        ASSIGNED | {"method__experts": {"names": ["a", "b"]}, "federation__client_experts": [0, 1, 2, 1]},
        "expected numbers from 0 to 1, found 2",
    ),
    "more groups than clients": (
        {"method__experts": {"count": 5}},
        "expected at most 4, the clients, found 5",
    ),
    "a name twice": ({"method__experts": {"by": "site", "names": ["a", "a"]}}, "expected every expert once"),
    "names of groups": (
        {"method__experts": {"count": 2, "names": ["a", "b"]}},
        "groups that are found are numbered",
    ),
    "hard rounds": (
        {"method__experts": {"by": "site", "hard_rounds": 5}},
        "expected at most 4, federation.rounds",
    ),
    "warm-up rounds": (
        {"method__experts": {"count": 2, "warmup_rounds": 3}},
        "method.experts.warmup_rounds: expected at most 2, the hard rounds",
    ),
    "top k": (
        {"method__experts": {"by": "site", "names": ["a", "b"], "top_k": 3}},
        "method.experts.top_k: expected at most 2",
    ),
    "folders that train": (
        {"method__experts": {"folders": {"a": "x", "b": "y"}, "start": "zero", "train": "both"}},
        "experts from folders stay as they are; set train: router",
    ),
    "statistics of nobody's rows": (
        {"method__experts": {"folders": {"a": "x", "b": "y"}}},
        "or start: zero",
    ),
    "request from zero": (
        {"method__experts": {"by": "site", "route": "request", "start": "zero"}},
        "set start: statistics",
    ),
    "request with a loss": (
        {"method__experts": {"by": "site", "route": "request", "entropy": 0.1}},
        "no gate is trained; leave it at 0",
    ),
    "entropy through checkpointing": (
        {"method__experts": {"by": "site", "entropy": 0.1}, "training__gradient_checkpointing": True},
        "method.experts.entropy: its gradient is lost in training.gradient_checkpointing",
    ),
    "balance through checkpointing": (
        {"method__experts": {"by": "site", "balance": 0.1}, "training__gradient_checkpointing": True},
        "method.experts.balance: its gradient is lost",
    ),
    "keep what stays": (
        {"method__experts": {"by": "site", "keep": 0.1}},
        "with train: router the cores stay",
    ),
    "heads": ({"method__heads": 2}, "method.heads: not with method.experts"),
    "client ranks": ({"federation__client_ranks": [4, 4, 2, 2]}, "federation.client_ranks"),
    "client heads": ({"federation__client_heads": [1, 1, 1, 1]}, "federation.client_heads"),
    "refresh": ({"method__refresh_every": 2}, "method.refresh_every"),
    "robust": (
        {"federation__robust": {"average": "median"}, "federation__weighting": "uniform"},
        "fed-mixer makes more of its clients' updates than one mean",
    ),
    "processes": ({"federation__processes": 2}, "with method.experts clients train in one process"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path, name):
    changes, message = REFUSED[name]
    with pytest.raises(InputError) as refusal:
        check_settings(RunConfig.from_dict(config_of(tmp_path, **changes)))
    assert message in str(refusal.value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=24, test=6)
    return folder


OF_ROWS = {
    "no such column": (
        {"by": "hospital"},
        "method.experts.by names the column 'hospital', which is not there",
    ),
    "one value": ({"by": "constant"}, "column 'constant' of"),
    "a row of none": (
        {"by": "site", "names": ["s0", "s1", "s2"]},
        "row 4: its value in column 'site' is none of the 3",
    ),
    "an expert without rows": (
        {"by": "site", "names": ["s0", "s1", "s2", "s3", "s4"]},
        "no training row is of expert 's4'",
    ),
    "a row without a value": ({"by": "gaps"}, "row 2 has no value in column 'gaps'"),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_that_do_not_fit_end_the_command_with_2(world, tmp_path, monkeypatch, capsys, name):
    experts, message = OF_ROWS[name]
    data = tmp_path / "data"
    write_data(data, train=24, test=6)
    lines = [
        line | {"constant": "x", "gaps": None if i == 1 else f"g{i % 2}"}
        for i, line in enumerate(rows_of(data))
    ]
    write_rows(data / "train.jsonl", lines)
    config = config_of(world, method__experts=experts, data__train=str(data / "train.jsonl"))
    file = write_config(tmp_path / "run.yaml", config)
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said


def rows_of(data):
    return [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]


def test_stages_by_default(tmp_path):
    def stages(**experts):
        config = RunConfig.from_dict(config_of(tmp_path, method__experts={"by": "site"} | experts))
        return hard_rounds(config), gate_after(config)

    assert stages() == (2, 2)
    assert stages(hard_rounds=0) == (0, 0)
    assert stages(hard_rounds=4) == (4, 4)
    assert stages(route="request") == (4, 0)
    assert stages(by=None, count=2, route="request") == (4, 1)
    assert stages(folders={"a": "x", "b": "y"}) == (0, 0)
