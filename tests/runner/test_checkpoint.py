"""A checkpoint comes back bit for bit; a damaged one says so; a killed save leaves the former one."""

import json
import os

import pytest
import torch
from oracles import random_factors

from fedsb.adapter import LoraPair
from fedsb.common import files
from fedsb.errors import InputError
from fedsb.federation.state import BaseChange, ServerState
from fedsb.federation.traffic import Traffic
from fedsb.runner import checkpoint
from fedsb.runner.checkpoint import RunState, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(generator):
    factors = {
        "layer.0.query": random_factors(4, 5, 2, heads=2, generator=generator),
        "layer.1.query": random_factors(4, 5, 2, core=False, generator=generator),
    }
    factors["layer.0.query"] = factors["layer.0.query"]._replace(s=torch.randn(2, generator=generator))
    state = ServerState(0, torch.randn(9, generator=generator))
    traffic = [Traffic(0, "bases", "down", 3, 300, 30)]
    return RunState(
        state, factors, traffic, [{"round": 0, "eval": {"accuracy": 0.5}}], {0: [1, 2], 10: [3]}, 1.5
    )


def next_round(saved):
    number = saved.state.round + 1
    saved.state = ServerState(number, saved.state.vector + 1)
    saved.traffic.append(Traffic(number, "updates", "up", 3, 100, 10))
    saved.metrics.append({"round": number, "train_loss": None})
    saved.seconds += 1.0


def changed_base(generator, rank=1):
    """What flora has after a round: one layer's update in factors, another's dense."""
    pair = LoraPair(torch.randn(4, rank, generator=generator), torch.randn(rank, 5, generator=generator))
    dense = torch.randn(3, 2, generator=generator)
    total = {"layer.0.query": pair.B @ pair.A + 1, "total layer.1": dense + 1}
    last = {"layer.0.query": pair, "total layer.1": dense}
    return BaseChange(total, last, rank, changed=2, previous=1, seen={0: 1, 12: 2})


def assert_equal(loaded: RunState, expected: RunState):
    assert loaded.state.round == expected.state.round
    assert torch.equal(loaded.state.vector, expected.state.vector)
    assert_equal_bases(loaded.state.base, expected.state.base)
    assert loaded.factors_round == expected.factors_round
    assert list(loaded.factors) == list(expected.factors)
    for name, factors in expected.factors.items():
        for one, other in zip(loaded.factors[name], factors, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
    for name in ("traffic", "metrics", "draw", "seconds", "hashes"):
        assert getattr(loaded, name) == getattr(expected, name)


def assert_equal_bases(loaded: BaseChange, expected: BaseChange):
    for name in ("total", "last"):
        one, other = getattr(loaded, name), getattr(expected, name)
        assert one.keys() == other.keys()
        for layer, value in other.items():
            assert type(one[layer]) is type(value)
            parts = zip(one[layer], value, strict=True) if name == "last" else [(one[layer], value)]
            assert all(torch.equal(a, b) for a, b in parts)
    for name in ("last_rank", "changed", "previous", "seen"):
        assert getattr(loaded, name) == getattr(expected, name)


def test_changes_of_base_weights_come_back_bit_for_bit(tmp_path, saved, generator):
    saved.state = ServerState(2, saved.state.vector, changed_base(generator))
    save_checkpoint(tmp_path, saved)
    assert_equal(load_checkpoint(tmp_path), saved)


def test_new_start_factors_replace_the_former_ones(tmp_path, saved, generator):
    save_checkpoint(tmp_path, saved)
    next_round(saved)
    saved.factors = {"layer.0.query": random_factors(4, 5, 2, generator=generator)}
    saved.factors_round = 1
    save_checkpoint(tmp_path, saved)
    assert_equal(load_checkpoint(tmp_path), saved)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["factors-00001.safetensors", "round-00001.safetensors", "state.json"]


def test_a_checkpoint_comes_back_bit_for_bit_after_each_round(tmp_path, saved):
    for _ in range(3):
        save_checkpoint(tmp_path / "c", saved)
        assert_equal(load_checkpoint(tmp_path / "c"), saved)
        next_round(saved)


def test_going_on_from_a_loaded_checkpoint_is_going_on(tmp_path, saved):
    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path)
    for state in (saved, loaded):
        next_round(state)
    save_checkpoint(tmp_path, loaded)
    saved.hashes = loaded.hashes
    assert_equal(load_checkpoint(tmp_path), saved)


def test_there_is_nothing_before_the_first_save(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None
    assert load_checkpoint(tmp_path) is None


def test_only_the_newest_round_is_kept_and_the_start_is_written_once(tmp_path, saved):
    save_checkpoint(tmp_path, saved)
    written = os.stat(tmp_path / "factors-00000.safetensors").st_mtime_ns
    for _ in range(3):
        next_round(saved)
        save_checkpoint(tmp_path, saved)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["factors-00000.safetensors", "round-00003.safetensors", "state.json"]
    assert os.stat(tmp_path / "factors-00000.safetensors").st_mtime_ns == written


@pytest.mark.parametrize("name", ["factors-00000.safetensors", "round-00000.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "changed", "emptied"])
def test_a_damaged_file_is_named(tmp_path, saved, name, damage):
    save_checkpoint(tmp_path, saved)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-5] if damage == "cut off" else b"")
    reason = "missing" if damage == "missing" else "changed or cut off"
    with pytest.raises(InputError, match=f"{name}: .*{reason}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"round": 1}', '{"files": {}}', "\x00"])
def test_a_state_file_that_cannot_be_read_is_an_input_error_with_a_cure(tmp_path, saved, content):
    save_checkpoint(tmp_path, saved)
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(
        InputError, match=r"state.json: cannot read this checkpoint .* Restore .* or start again"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("fails", ["round file", "state file", "renaming"])
def test_a_save_killed_before_the_state_file_is_replaced_leaves_the_former_state(
    tmp_path, saved, monkeypatch, fails
):
    save_checkpoint(tmp_path, saved)
    before = load_checkpoint(tmp_path)
    next_round(saved)

    def killed(*args):
        raise KeyboardInterrupt

    def killed_at_state(source, target):
        return killed() if str(target).endswith("state.json") else real_replace(source, target)

    real_replace = os.replace
    if fails == "renaming":
        monkeypatch.setattr(files.os, "replace", killed_at_state)
    else:
        monkeypatch.setattr(checkpoint, "write_bytes" if fails == "round file" else "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, saved)
    monkeypatch.undo()
    assert_equal(load_checkpoint(tmp_path), before)
    save_checkpoint(tmp_path, saved)  # and the next save works as if nothing had happened
    assert_equal(load_checkpoint(tmp_path), saved)


def test_a_save_killed_before_old_rounds_are_removed_loads_the_new_state(tmp_path, saved, monkeypatch):
    save_checkpoint(tmp_path, saved)
    next_round(saved)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, saved)
    monkeypatch.undo()
    assert_equal(load_checkpoint(tmp_path), saved)


# ---------------------------------------------------------------- atomic files


def test_a_write_that_fails_leaves_the_former_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def killed(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", killed)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_json_has_null_for_what_is_not_finite(tmp_path):
    value = {"a": [float("nan"), (float("inf"), 1.5)], "b": "ü", "c": {"d": -float("inf")}}
    files.write_json(tmp_path / "a.json", value)
    files.write_jsonl(tmp_path / "a.jsonl", [value, value])
    expected = {"a": [None, [None, 1.5]], "b": "ü", "c": {"d": None}}
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == expected
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [expected] * 2
