"""A run that is given more rounds, or whose base model was moved, is the run that it would have been."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import (
    adapter_bytes,
    causal_config,
    changed,
    classification_config,
    main_status,
    snapshot,
    timeless,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
)
from safetensors.torch import load_file, save_file

from fedsb import RunConfig, run
from fedsb.common import files
from fedsb.errors import InputError
from fedsb.runner.export import export_lora, export_merged

START = {"samples": 24, "head_warmup": None, "step_size": 0.001}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continued")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    write_data(folder / "data", train=24, test=9)
    return folder


def config_of(world: Path, rounds: int, **changes: Any) -> dict[str, Any]:
    base = classification_config(world / "bert", world / "data", method__init=START, federation__clients=2)
    return changed(changed(base, **changes), federation__rounds=rounds)


def played(config: dict[str, Any], folder: Path, **options: Any) -> Path:
    run(RunConfig.from_dict(config), folder, **options)
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    assert timeless(folder) == timeless(expected)
    assert adapter_bytes(folder) == adapter_bytes(expected)
    for name in ("partition.json", "ledger.json", "config.yaml"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, expected))
    for key in mine.keys() - {"seconds", "peak_memory_bytes"}:
        assert mine[key] == theirs[key], key


# ---------------------------------------------------------------- more rounds

LONGER = {
    "fed-sb": {},
    "partial cohorts": {"federation__clients_per_round": 1, "training__epochs": 1.5},
    "bases refreshed after what was the last round": {"method__refresh_every": 2},
    "bases refreshed before": {"method__refresh_every": 1},
    "additions to the base": {"method__name": "flora"},
    "a residual": {"method__name": "fedex-lora"},
    "alternating factors": {"method__name": "rolora"},
    "heads": {"method__name": "ravan", "method__heads": 2, "method__rank": 2},
}


@pytest.mark.parametrize("case", LONGER)
def test_more_rounds_are_those_of_a_longer_run_bit_for_bit(world: Path, tmp_path: Path, case: str) -> None:
    shorter, longer = (config_of(world, rounds, **LONGER[case]) for rounds in (2, 4))
    expected = played(longer, tmp_path / "longer")
    folder = played(longer, played(shorter, tmp_path / "run"), resume=True)
    assert_same_run(folder, expected)


def test_an_unfinished_run_is_given_more_rounds(world: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """And is killed in one of them, and resumed again."""
    longer, replace = config_of(world, 4), os.replace
    expected = played(longer, tmp_path / "longer")

    def killed_at(name: str, rounds: int, *, resume: bool) -> None:
        def dying(source: str, target: str) -> None:
            replace(source, target)
            if os.path.basename(target) == name:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", dying)
            with pytest.raises(KeyboardInterrupt):
                played(config_of(world, rounds), tmp_path / "run", resume=resume)

    killed_at("round-00001.safetensors", 2, resume=False)
    killed_at("round-00003.safetensors", 4, resume=True)
    assert_same_run(played(longer, tmp_path / "run", resume=True), expected)


def test_killed_as_more_rounds_begin(world: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """No summary is left that would pass for the longer run's."""
    longer = config_of(world, 3)
    played(config_of(world, 2), tmp_path / "run")

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            played(longer, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="not finished"):
        export_lora(tmp_path / "run", tmp_path / "out")
    assert_same_run(played(longer, tmp_path / "run", resume=True), played(longer, tmp_path / "longer"))


def test_more_rounds_on_the_command_line(world: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = write_config(tmp_path / "run.yaml", config_of(world, 1, method__init__step_size=...))
    assert main_status(monkeypatch, "run", path, "--out", tmp_path / "run") == 0
    assert main_status(monkeypatch, "evaluate", "--run", tmp_path / "run") == 0
    more = ("run", "--out", tmp_path / "run", "--resume", "-s", "federation.rounds=3")
    capsys.readouterr()
    assert main_status(monkeypatch, *more) == 0
    out = capsys.readouterr().out
    assert "more rounds than at the start (1 -> 3): R0 keeps the size" in out
    assert "round 2 of 3" in out
    assert "round 3 of 3" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 3
    assert not (tmp_path / "run" / "evaluation" / "scores.json").exists(), "they were of one round"
    before = snapshot(tmp_path / "run" / "checkpoint")
    assert main_status(monkeypatch, "run", "--out", tmp_path / "run", "--resume") == 0
    assert snapshot(tmp_path / "run" / "checkpoint").keys() == before.keys()


PRIVATE = {
    "privacy": {"epsilon": 50.0, "insecure_seed": 1},
    "method__init": {"kind": "orthonormal", "head_warmup": None},
}
REFUSED = {
    "fewer": ({}, 1, ["federation.rounds: 2 -> 1", "more rounds, not fewer"]),
    "linear": (
        {"training__schedule": "linear"},
        4,
        ["federation.rounds: 2 -> 4", "training.schedule: linear", "method.init.from_run"],
    ),
    "cosine": ({"training__schedule": "cosine"}, 3, ["training.schedule: cosine", "method.init.from_run"]),
    "warm-up": ({"training__warmup_ratio": 0.2}, 3, ["training.warmup_ratio", "method.init.from_run"]),
    "privacy": (PRIVATE, 3, ["federation.rounds: 2 -> 3", "privacy", "under another --out"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rounds_that_would_not_be_the_same(world: Path, tmp_path: Path, case: str) -> None:
    changes, rounds, parts = REFUSED[case]
    folder = played(config_of(world, 2, **changes), tmp_path / "run")
    before = snapshot(folder)
    with pytest.raises(InputError) as refused:
        played(config_of(world, rounds, **changes), folder, resume=True)
    assert all(part in str(refused.value) for part in parts), refused.value
    assert snapshot(folder) == before


def test_other_keys_beside_more_rounds_are_still_refused(world: Path, tmp_path: Path) -> None:
    folder = played(config_of(world, 1), tmp_path / "run")
    with pytest.raises(InputError, match=r"another config:\n  training.learning_rate: 0.02 -> 0.1$"):
        played(config_of(world, 2, training__learning_rate=0.1), folder, resume=True)


def test_nodes_agreed_to_so_many_rounds(world: Path, tmp_path: Path) -> None:
    from fedsb.runner.clients import RemoteClients

    folder = played(config_of(world, 1), tmp_path / "run")
    remote = RemoteClients([12, 12], lambda *arguments: iter(()), None)
    with pytest.raises(InputError, match=r"federation.rounds: 1 -> 2: every node agreed"):
        played(config_of(world, 2), folder, resume=True, remote=remote)


# ---------------------------------------------------------------- a base that was moved


@pytest.fixture
def moved(world: Path, tmp_path: Path) -> Path:
    """A folder with `run`, whose base was `here` and is `there` now."""
    shutil.copytree(world / "llama", tmp_path / "here")
    config = causal_config(tmp_path / "here", world / "data", federation__rounds=1, method__init=START)
    played(config, tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    return tmp_path


def other_weights(folder: Path, name: str) -> Path:
    """The same model with one tensor that is not adapted changed a little."""
    copy = shutil.copytree(folder / "there", folder / name)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 0.01
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_export_with_the_base_elsewhere(moved: Path, monkeypatch: Any, capsys: Any, form: str) -> None:
    command = ("export", moved / "run", "--format", form, "--out", moved / "out")
    assert main_status(monkeypatch, *command) == 2
    err = capsys.readouterr().err
    assert f"was in {moved / 'here'} and is not there any more" in err
    assert "--base PATH" in err
    assert main_status(monkeypatch, *command, "--base", other_weights(moved, "other")) == 2
    assert "other weights" in capsys.readouterr().err
    assert not (moved / "out").exists()
    assert main_status(monkeypatch, *command, "--base", moved / "there") == 0


def test_evaluate_with_the_base_elsewhere(moved: Path, monkeypatch: Any, capsys: Any) -> None:
    final = json.loads((moved / "run" / "summary.json").read_text())["final"]
    assert main_status(monkeypatch, "evaluate", "--run", moved / "run", "--json") == 2
    assert "-s model.path=PATH" in capsys.readouterr().err
    at = ("evaluate", "--run", moved / "run", "--json", "-s")
    assert main_status(monkeypatch, *at, f"model.path={moved / 'there'}") == 0
    scores = json.loads(capsys.readouterr().out)["metrics"]
    assert scores == pytest.approx(final, rel=1e-5)
    assert main_status(monkeypatch, *at, f"model.path={other_weights(moved, 'other')}") == 2
    assert "other weights" in capsys.readouterr().err


def test_resume_with_the_base_elsewhere(moved: Path, monkeypatch: Any, capsys: Any) -> None:
    (moved / "run" / "summary.json").unlink()
    command = ("run", "--out", moved / "run", "--resume", "-s")
    assert main_status(monkeypatch, *command, f"model.path={other_weights(moved, 'other')}") == 2
    assert "the weights of the base model (model.path)" in capsys.readouterr().err
    assert main_status(monkeypatch, *command, f"model.path={moved / 'there'}") == 0
    assert str(moved / "there") in (moved / "run" / "config.yaml").read_text()
    export_merged(moved / "run", moved / "merged")


def test_a_moved_base_and_more_rounds_at_once(world: Path, moved: Path) -> None:
    config = causal_config(moved / "there", world / "data", federation__rounds=2, method__init=START)
    expected = played(config, moved / "longer")
    played(config, moved / "run", resume=True)
    assert_same_run(moved / "run", expected)


def test_weights_that_the_base_lacks_are_drawn_from_the_run_s_seed_again(world: Path, tmp_path: Path) -> None:
    """A masked language model has no pooler."""
    from transformers import AutoModelForSequenceClassification, BertForMaskedLM

    shutil.copytree(world / "bert", tmp_path / "base")
    BertForMaskedLM.from_pretrained(world / "bert").save_pretrained(tmp_path / "base")
    config = config_of(world, 1, model__path=str(tmp_path / "base"), seed=5)
    model = run(RunConfig.from_dict(config), tmp_path / "run").model.eval()
    export_merged(tmp_path / "run", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(12).reshape(2, 6) + 4
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5)
