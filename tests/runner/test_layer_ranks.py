"""Runs whose layers have ranks of their own: at no more numbers, resumed, exported and started from."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from run_helpers import (
    adapter_bytes,
    changed,
    classification_config,
    metrics_of,
    timeless,
    tiny_bert,
    write_data,
)
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.runner import loop
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.export import export_lora
from fedsb.runner.memory import Longest, estimate_memory

SPECTRUM = {"ranks": "spectrum", "rule": "raw", "samples": 24, "head_warmup": None}
PROBE = (torch.arange(3 * 9).reshape(3, 9) * 7 + 4) % 27


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=36, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "method__init": dict(SPECTRUM),
        "method__targets": ["query", "key", "intermediate.dense"],
        "federation": {"clients": 3, "rounds": 2},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def played(config, folder):
    return run(RunConfig.from_dict(config), folder)


@pytest.fixture(scope="module")
def unbroken(world):
    return played(config_of(world), world / "unbroken")


def ranks_of(folder, heads=1):
    factors = load_checkpoint(folder / "checkpoint").factors
    for part in factors.values():
        r = part.R.shape[-1]
        assert part.R.shape == (heads, r, r)
        assert part.A.shape[0] == part.B.shape[1] == heads * r
    return {name: part.R.shape[-1] for name, part in factors.items()}


def assert_ranks(folder, rank=4, heads=1):
    ranks = ranks_of(folder, heads)
    assert len(set(ranks.values())) > 1
    assert sum(r * r for r in ranks.values()) <= len(ranks) * rank * rank
    assert min(ranks.values()) >= rank // 4
    assert max(ranks.values()) <= 2 * rank
    return ranks


def test_layers_have_ranks_of_their_own_at_no_more_numbers(world, unbroken, tmp_path):
    ranks = assert_ranks(unbroken.folder)
    equal = played(config_of(world, method__init__ranks="equal"), tmp_path / "equal")
    assert set(ranks_of(equal.folder).values()) == {4}
    head = sum(p.numel() for n, p in unbroken.model.named_parameters() if "classifier" in n)
    for ours, theirs in zip(metrics_of(unbroken.folder)[1:], metrics_of(equal.folder)[1:], strict=True):
        assert ours["upload_parameters"] == 3 * (head + sum(r * r for r in ranks.values()))
        assert ours["upload_parameters"] <= theirs["upload_parameters"]
        assert ours["upload_bytes"] <= theirs["upload_bytes"]
        assert ours["download_bytes"] <= theirs["download_bytes"]
    assert unbroken.summary["initialization"]["ranks"] == ranks
    assert "ranks" not in equal.summary["initialization"]
    assert "Ranks, by layer" in (unbroken.folder / "report.html").read_text()


def test_a_resumed_run_is_the_unbroken_one(world, unbroken, tmp_path, monkeypatch):
    real = loop.play_round

    def broken(session, saved, number, chosen):
        if number == 2:
            raise KeyboardInterrupt
        return real(session, saved, number, chosen)

    monkeypatch.setattr(loop, "play_round", broken)
    with pytest.raises(KeyboardInterrupt):
        played(config_of(world), tmp_path / "run")
    monkeypatch.undo()
    run(RunConfig.from_dict(config_of(world)), tmp_path / "run", resume=True)
    assert timeless(tmp_path / "run") == timeless(unbroken.folder)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(unbroken.folder)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=PROBE, attention_mask=torch.ones_like(PROBE)).logits


@pytest.mark.parametrize("rank", [None, 12])
def test_peft_gives_the_run_s_logits(world, unbroken, tmp_path, rank):
    largest = max(ranks_of(unbroken.folder).values())
    assert export_lora(unbroken.folder, tmp_path / "lora", rank=rank) == (rank or largest)
    base = AutoModelForSequenceClassification.from_pretrained(world / "bert", num_labels=3)
    found, expected = logits_of(PeftModel.from_pretrained(base, tmp_path / "lora")), logits_of(unbroken.model)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (
        f"({min(ranks_of(unbroken.folder).values())} to {largest} by layer)"
        in (tmp_path / "lora" / "README.md").read_text()
    )


WAYS = {
    "heads, turned, sketches": {
        "method__heads": 2,
        "method__init": SPECTRUM | {"upload": "sketch", "frame": "random"},
    },
    "whole gradients' signs": {"method__init": SPECTRUM | {"upload": "whole", "rule": "sign"}},
    "a secure sum": {
        "method__init": SPECTRUM | {"upload": "sketch"},
        "federation__secure_aggregation": {},
    },
    "the server's steps, R0 = 0": {
        "method__init": SPECTRUM | {"step_size": 0.0},
        "training__moments": "averaged",
        "federation__server": {"optimizer": "adam", "learning_rate": 0.01},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_other_starts_and_averages_take_the_ranks(world, tmp_path, way):
    played(config_of(world, federation__rounds=1, **WAYS[way]), tmp_path / "run")
    assert_ranks(tmp_path / "run", heads=WAYS[way].get("method__heads", 1))


def test_private_training_takes_ranks_of_public_rows(world, tmp_path):
    config = config_of(
        world,
        federation__rounds=1,
        method__init=SPECTRUM | {"public": str(world / "data" / "test.jsonl")},
        privacy={"unit": "example", "noise_multiplier": 1.0, "insecure_seed": 3},
    )
    played(config, tmp_path / "run")
    assert_ranks(tmp_path / "run")


def test_clients_of_smaller_ranks_hold_no_more_of_any_layer(world, tmp_path):
    config = config_of(world, federation={"clients": 3, "rounds": 1, "client_ranks": [4, 2, 1]})
    result = played(config, tmp_path / "run")
    ranks = assert_ranks(result.folder)
    head = sum(p.numel() for n, p in result.model.named_parameters() if "classifier" in n)
    sent = [sum(r * r for r in ranks.values())]
    sent += [sum(min(r, own) ** 2 for r in ranks.values()) for own in (2, 1)]
    assert metrics_of(result.folder)[1]["upload_parameters"] == sum(sent) + 3 * head


def test_a_stack_of_clients_gives_the_same(world, tmp_path):
    shutil.copytree(world / "bert", tmp_path / "bert")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    stored = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(stored | still))
    config = config_of(world, model__path=str(tmp_path / "bert"), federation__rounds=1)
    engine = {"kind": "stacked", "clients": 3}
    apart, stacked = (
        played(made, tmp_path / name).folder
        for name, made in (("apart", config), ("stacked", changed(config, federation__engine=engine)))
    )
    assert_ranks(stacked)
    mine, theirs = (load_checkpoint(folder / "checkpoint").state.vector for folder in (stacked, apart))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    assert metrics_of(stacked)[1]["upload_parameters"] == metrics_of(apart)[1]["upload_parameters"]


def test_a_client_s_own_core_is_exported_with_the_shared_one(world, tmp_path):
    config = config_of(world, method__personal=True, federation__rounds=1)
    result = played(config, tmp_path / "run")
    export_lora(result.folder, tmp_path / "one", client="1")
    saved = load_checkpoint(result.folder / "checkpoint")
    tensors = load_file(tmp_path / "one" / "adapter_model.safetensors")
    cores = {}
    vector = saved.state.vector
    for layer, part in saved.factors.items():
        core, vector = vector[: part.R.numel()].view_as(part.R), vector[part.R.numel() :]
        cores[layer] = core + saved.kept[1][f"{layer}.P"]
    for layer, part in saved.factors.items():
        B, A = (tensors[f"base_model.model.{layer}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(B @ A, part.B @ cores[layer][0] @ part.A, atol=1e-6, rtol=1e-4)


def test_a_run_starts_from_such_a_run(world, unbroken, tmp_path):
    still = {"training__optimizer": "sgd", "training__learning_rate": 1e-30}
    config = config_of(world, federation__rounds=1, **still)
    again = changed(config, method__init={"from_run": str(unbroken.folder), "ranks": "spectrum"})
    begun = played(again, tmp_path / "again")
    assert ranks_of(tmp_path / "again") == ranks_of(unbroken.folder)
    torch.testing.assert_close(logits_of(begun.model), logits_of(unbroken.model), atol=1e-5, rtol=1e-5)
    equal = changed(config, method__init={"from_run": str(unbroken.folder)})
    with pytest.raises(InputError, match=r"method\.init\.ranks: 'spectrum' -> 'equal'"):
        played(equal, tmp_path / "equal")


def test_memory_is_counted_for_the_largest_ranks(world):
    parsed = [
        RunConfig.from_dict(config_of(world, model__check_memory=True, method__init__ranks=ranks))
        for ranks in ("equal", "spectrum")
    ]
    equal, spectrum = (estimate_memory(config, 3, Longest(8, 0)) for config in parsed)
    assert equal.factors < spectrum.factors <= 2 * equal.factors
    assert equal.training == spectrum.training


REFUSED = {
    "no core": ({"method__name": "fedit"}, "fedit has no core over bases of gradients.*take one of fed-sb"),
    "bases of its own": ({"method__name": "ravan"}, "ravan has no core over bases of gradients"),
    "of the weights": ({"method__init": SPECTRUM | {"kind": "weights"}}, "method.init.kind: gradient alone"),
    "moments": ({"method__init": SPECTRUM | {"rule": "moments"}}, "take method.init.rule: sign or raw"),
    "noise": (
        {"method__init": SPECTRUM | {"private": True}, "privacy": {"unit": "example", "epsilon": 3.0}},
        "the noise's singular values would choose",
    ),
    "new bases": ({"method__refresh_every": 1}, "ranks are chosen once.*method.refresh_every out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_spectrum_to_choose_by_is_refused(world, case):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=f"method.init.ranks: spectrum: .*{message}") as refused:
        check_settings(RunConfig.from_dict(config_of(world, **changes)))
    assert "\n" not in str(refused.value)
