"""A run that starts from an earlier run's adapter begins where that one ended, or is refused at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import (
    causal_config,
    changed,
    classification_config,
    main_status,
    metrics_of,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
)
from safetensors.torch import load_file, save_file

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.methods import METHODS
from fedsb.runner.prepare_data import check_can_deploy

START = {"samples": 24, "head_warmup": {"rounds": 1, "steps": 5}}
STILL = {"training__optimizer": "sgd", "training__learning_rate": 1e-30}
"""Rounds that change nothing."""
NAMES = [m.name for m in METHODS.all() if not (m.changes_base or m.experts or m.stays)]

Play = Callable[..., Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    write_data(folder / "data", train=24, test=9)
    return folder


def config_of(world: Path, **changes: Any) -> dict[str, Any]:
    base = classification_config(
        world / "bert", world / "data", method__init=START, federation={"clients": 2, "rounds": 1}
    )
    return changed(base, **changes)


def played(config: dict[str, Any], folder: Path) -> Path:
    run(RunConfig.from_dict(config), folder)
    return folder


@pytest.fixture(scope="module")
def earlier(world: Path) -> Path:
    return played(config_of(world), world / "earlier")


def products(folder: Path) -> dict[str, torch.Tensor]:
    """What the adapter adds to each layer, and the head."""
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    added = {n: t @ tensors[n.replace("lora_B", "lora_A")] for n, t in tensors.items() if "lora_B" in n}
    return added | {n: t for n, t in tensors.items() if ".lora_" not in n}


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_where_the_earlier_run_ended(world: Path, tmp_path: Path, name: str) -> None:
    first = config_of(world, method__name=name, seed=3)
    before = products(played(first, tmp_path / "first"))
    again = changed(first, seed=4, method__init={"from_run": str(tmp_path / "first")}, **STILL)
    after = products(played(again, tmp_path / "second"))
    assert before.keys() == after.keys()
    for layer, value in before.items():
        assert value.any()
        torch.testing.assert_close(after[layer], value, atol=1e-6, rtol=1e-5)


def test_it_trains_on_from_there(world: Path, earlier: Path, tmp_path: Path) -> None:
    """Relative to where one stands, with other clients, rows, rates and schedule."""
    config = config_of(
        world,
        method__init={"from_run": str(earlier)},
        federation={"clients": 3, "rounds": 2},
        training__schedule="linear",
        seed=9,
    )
    shutil.copytree(earlier, tmp_path / "moved")
    config["method"]["init"]["from_run"] = str(tmp_path / "moved")
    folder = played(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "moved")  # once begun, a run needs it no more
    losses = [line["eval"]["loss"] for line in metrics_of(folder)]
    assert losses[-1] < metrics_of(earlier)[-1]["eval"]["loss"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["initialization"] == {"kind": "an earlier run", "rule": None, "samples": {}}
    assert [entry["what"] for entry in summary["communication"]["one_time"]] == ["bases B and A"]
    longer = changed(config, federation__rounds=2)
    run(RunConfig.from_dict(longer), folder, resume=True)


def test_its_workers_have_the_factors_too(world: Path, earlier: Path, tmp_path: Path) -> None:
    config = config_of(world, method__init={"from_run": str(earlier)})
    here = products(played(config, tmp_path / "here"))
    there = products(played(changed(config, federation__processes=2), tmp_path / "there"))
    for layer, value in here.items():
        torch.testing.assert_close(there[layer], value, atol=1e-6, rtol=1e-5)


def test_a_language_model_starts_from_a_run(world: Path, tmp_path: Path) -> None:
    config = causal_config(world / "llama", world / "data", federation__rounds=1, method__init={"samples": 8})
    before = products(played(config, tmp_path / "first"))
    again = changed(config, method__init={"from_run": str(tmp_path / "first")}, **STILL)
    after = products(played(again, tmp_path / "second"))
    assert all(torch.allclose(after[n], value, atol=1e-6) for n, value in before.items())


def other_embeddings(base: Path, copy: Path) -> Path:
    shutil.copytree(base, copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "word_embeddings" in name)
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another method": ({"method__name": "lora-xs"}, ["method.name: 'fed-sb' -> 'lora-xs'", "take the same"]),
    "another rank": ({"method__rank": 3}, ["method.rank: 4 -> 3"]),
    "other heads": ({"method__heads": 2}, ["method.heads: 1 -> 2"]),
    "other layers": ({"method__targets": ["query"]}, ["method.targets"]),
    "other weights": ({"model__path": "OTHER"}, ["model.path", "other weights"]),
    "another dtype": ({"model__dtype": "bfloat16"}, ["model.path", "model.dtype"]),
    "other classes": ({"task__label": "site"}, ["task.labels", "other classes"]),
    "another task": ({"task__label": "score"}, ["task.labels"]),
    "no run": ({"method__init": {"from_run": "ROOT/data"}}, ["holds no finished run", "--resume"]),
    "nothing": ({"method__init": {"from_run": "ROOT/none"}}, ["holds no finished run"]),
    "privacy": (
        {"privacy": {"epsilon": 3.0}, "method__init__kind": "orthonormal"},
        ["method.init.from_run", "beyond this run's guarantee", "--format merged"],
    ),
    "public rows": ({"method__init__public": "ROOT/data/train.jsonl"}, ["method.init.public", "leave one"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(world: Path, earlier: Path, tmp_path: Path, case: str) -> None:
    changes, parts = REFUSED[case]
    config = changed(config_of(world, method__init={"from_run": str(earlier)}), **changes)
    text = json.dumps(config).replace("ROOT", str(world))
    if "OTHER" in text:
        text = text.replace("OTHER", str(other_embeddings(world / "bert", tmp_path / "other")))
    with pytest.raises(InputError) as refused:
        played(json.loads(text), tmp_path / "run")
    assert all(part in str(refused.value) for part in parts), refused.value
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_no_start(world: Path, earlier: Path, tmp_path: Path) -> None:
    shutil.copytree(earlier, tmp_path / "half")
    (tmp_path / "half" / "summary.json").unlink()
    config = config_of(world, method__init={"from_run": str(tmp_path / "half")})
    with pytest.raises(InputError, match=r"holds no finished run with its checkpoint.*--resume"):
        played(config, tmp_path / "run")


@pytest.mark.parametrize("changes", [{"method__name": "flora"}, {"method__refresh_every": 1}], ids=str)
def test_a_run_that_changed_its_base_is_exported_and_taken_as_base(
    world: Path, tmp_path: Path, monkeypatch: Any, changes: dict[str, Any]
) -> None:
    first = config_of(world, federation__rounds=2, **changes)
    played(first, tmp_path / "first")
    path = write_config(tmp_path / "again.yaml", first)
    start = f"method.init.from_run={tmp_path / 'first'}"
    with pytest.raises(InputError, match=r"fedsb export .* --format merged --dtype float32") as refused:
        played(changed(first, method__init={"from_run": str(tmp_path / "first")}), tmp_path / "second")
    cure = str(refused.value).partition("fedsb ")[2].partition(" --out")[0].split()
    assert main_status(monkeypatch, *cure, "--out", tmp_path / "base") == 0
    assert main_status(monkeypatch, "run", path, "--out", tmp_path / "second", "-s", start) == 2
    options = ("--out", tmp_path / "second", "-s", f"model.path={tmp_path / 'base'}")
    assert main_status(monkeypatch, "run", path, *options) == 0


@pytest.mark.parametrize("rank", [4, 3])
def test_doctor_looks_at_the_start(
    world: Path, earlier: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, rank: int
) -> None:
    config = config_of(world, method__init={"from_run": str(earlier)}, method__rank=rank)
    status = main_status(monkeypatch, "doctor", write_config(tmp_path / "again.yaml", config), "--json")
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert status == (0 if rank == 4 else 2)
    assert findings["start"]["ok"] is (rank == 4)
    assert (str(earlier) if rank == 4 else "method.rank: 4 -> 3") in findings["start"]["detail"]


def test_nodes_make_their_own_bases(world: Path, earlier: Path) -> None:
    config = RunConfig.from_dict(
        config_of(world, method__init={"from_run": str(earlier)}, task__labels=["flat", "neg", "pos"])
    )
    check_settings(config)
    with pytest.raises(InputError, match=r"method\.init\.from_run: for simulated runs"):
        check_can_deploy(config)


def test_its_place_is_written_whole(
    world: Path, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(earlier.parent)
    folder = played(config_of(world, method__init={"from_run": "earlier"}, **STILL), tmp_path / "run")
    assert f"from_run: {earlier}" in (folder / "config.yaml").read_text()
