"""A party's own config, and what it refuses."""

import pytest

from fedsb import RunConfig
from fedsb.errors import InputError
from fedsb.node_config import NodeConfig, check_limits

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
