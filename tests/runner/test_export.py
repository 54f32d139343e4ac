"""Exports at ranks 64 and 200, of one decoder and one encoder; what is refused; the model card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from run_helpers import WORDS, causal_config, classification_config, main_status, save_tokenizer, write_data
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedsb import RunConfig, run
from fedsb.adapter import LoraPair
from fedsb.errors import InputError, RunFailed
from fedsb.models.peft_folder import at_rank, base_weights_of
from fedsb.runner.export import export_lora, export_merged
from fedsb.runner.vllm import VLLM_RANKS, serving_rank

PROBE = (torch.arange(3 * 9).reshape(3, 9) * 7 + 4) % 27
WIDE = {"hidden_size": 208, "intermediate_size": 224, "num_hidden_layers": 1, "num_attention_heads": 4}
"""Wide enough for rank 200."""
LOADERS = {"bert": AutoModelForSequenceClassification, "llama": AutoModelForCausalLM}


def wide_model(folder: Path, family: str, seed: int = 0) -> Path:
    size = WIDE | {"vocab_size": len(WORDS), "max_position_embeddings": 64, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "bert":
            BertModel(BertConfig(**size)).save_pretrained(folder)
        else:
            special = {"bos_token_id": 2, "eos_token_id": 3}
            LlamaForCausalLM(LlamaConfig(**size | special)).save_pretrained(folder)
    save_tokenizer(folder, causal=family == "llama")
    return folder


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=PROBE, attention_mask=torch.ones_like(PROBE)).logits


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs FAMILY-RANK with the logits of their own model beside them."""
    folder = tmp_path_factory.mktemp("wide")
    write_data(folder / "data", train=18, test=6)
    for family, make in (("bert", classification_config), ("llama", causal_config)):
        model = wide_model(folder / family, family)
        for rank in (64, 200):
            settings: dict[str, Any] = {
                "method__rank": rank,
                "method__init": {"kind": "weights", "head_warmup": None},
                "federation": {"clients": 2, "rounds": 1},
            }
            config = RunConfig.from_dict(make(model, folder / "data", **settings))
            result = run(config, folder / f"{family}-{rank}")
            torch.save(logits_of(result.model), folder / f"{family}-{rank}.pt")
    return folder


def reloaded(world: Path, family: str, adapter: Path) -> torch.Tensor:
    """Logits of a base and a PeftModel that this export has not seen."""
    base = LOADERS[family].from_pretrained(world / family, **({"num_labels": 3} if family == "bert" else {}))
    return logits_of(PeftModel.from_pretrained(base, adapter))


def worst(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("trained", "exported"), [(64, None), (64, 200), (200, None), (200, 256)])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_fresh_peft_model_gives_the_run_s_logits(
    world: Path, tmp_path: Path, family: str, trained: int, exported: int | None
) -> None:
    name = f"{family}-{trained}"
    assert export_lora(world / name, tmp_path / "lora", rank=exported) == (exported or trained)
    assert worst(reloaded(world, family, tmp_path / "lora"), torch.load(world / f"{name}.pt")) < 1e-4
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == (exported or trained)


@pytest.mark.parametrize(("trained", "served"), [(64, 64), (200, 256)])
def test_a_decoder_is_padded_to_a_rank_of_vllm(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: int, served: int
) -> None:
    name, out = f"llama-{trained}", tmp_path / "served"
    assert main_status(monkeypatch, "export", world / name, "--for", "vllm", "--out", out) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == served
    assert served in VLLM_RANKS
    assert (config["bias"], config["use_dora"], config["modules_to_save"]) == ("none", False, None)
    assert set(load_file(out / "adapter_model.safetensors")) == {
        f"base_model.model.{layer}.lora_{x}.weight" for layer in config["target_modules"] for x in "AB"
    }
    assert worst(reloaded(world, "llama", out), torch.load(world / f"{name}.pt")) < 1e-4
    assert f"--max-lora-rank {served}" in (out / "README.md").read_text()


def test_ranks_of_servers() -> None:
    assert [serving_rank(r) for r in (1, 2, 64, 65, 200, 257, 512)] == [1, 8, 64, 128, 256, 320, 512]
    with pytest.raises(InputError, match=r"rank 513 and vLLM takes 512 at most.*--format merged"):
        serving_rank(513)


# ---------------------------------------------------------------- refactoring


def test_a_lower_rank_is_exact_where_the_update_has_it(generator: torch.Generator) -> None:
    left, middle, A = (torch.randn(shape, generator=generator) for shape in ((12, 3), (3, 9), (9, 10)))
    pair = LoraPair(left @ middle, A)  # of inner size 9, and rank 3
    product = pair.B @ pair.A
    for rank in (3, 4, 8, 9, 20):
        lower = at_rank(pair, rank)
        assert lower.A.shape == (rank, 10)
        assert lower.B.shape == (12, rank)
        assert torch.allclose(lower.B @ lower.A, product, atol=1e-5 * float(product.norm()))
    with pytest.raises(InputError, match=r"rank 9 and 2 would lose part of it \(0\.\d+ of a layer's norm\)"):
        at_rank(pair, 2)


def test_nothing_is_of_any_rank() -> None:
    zero = at_rank(LoraPair(torch.zeros(4, 3), torch.ones(3, 5)), 1)
    assert torch.equal(zero.B @ zero.A, torch.zeros(4, 5))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        (
            "llama-200",
            ["--for", "vllm", "--rank", "200"],
            ["--rank", "256, 320, 512", "found 200", "give 256"],
        ),
        ("llama-64", ["--for", "vllm", "--rank", "32"], ["--rank", "rank 64 and 32 would lose"]),
        ("bert-64", ["--for", "vllm"], ["--for vllm", "trained head (classifier)", "--format merged"]),
        ("llama-64", ["--for", "tgi"], ["--for", "expected vllm", "'tgi'"]),
        ("llama-64", ["--format", "merged", "--for", "vllm"], ["--for", "leave it out"]),
    ],
)
def test_what_a_server_would_refuse(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
    parts: list[str],
) -> None:
    assert main_status(monkeypatch, "export", world / name, "--out", tmp_path / "out", *arguments) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_for_another_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = LlamaConfig(vocab_size=len(WORDS), **{**WIDE, "hidden_size": 224, "num_attention_heads": 4})
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other", causal=True)
    config = world / "llama-64" / "config.yaml"
    arguments = [
        "--model",
        tmp_path / "other",
        "--adapter",
        world / "llama-64" / "adapter",
        "--config",
        config,
    ]
    assert main_status(monkeypatch, "evaluate", *arguments) == 2
    err = capsys.readouterr().err
    assert "made for another model (llama)" in err
    assert "208 x 224 in it" in err
    assert "224 x 224" in err


def evaluated(monkeypatch: pytest.MonkeyPatch, model: Path, adapter: Path, *more: object) -> int:
    config = adapter.parent / "config.yaml"
    arguments = ["--model", model, "--adapter", adapter, "--config", config, *more]
    return main_status(monkeypatch, "evaluate", *arguments)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_adapter_on_other_weights_of_the_same_shapes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, family: str
) -> None:
    other, adapter = wide_model(tmp_path / "other", family, seed=1), world / f"{family}-64" / "adapter"
    assert evaluated(monkeypatch, world / family, adapter) == 0
    assert evaluated(monkeypatch, other, adapter) == 2
    err = capsys.readouterr().err
    assert f"trained on other weights ({family})" in err
    assert evaluated(monkeypatch, other, adapter, "-s", "model.dtype=bfloat16") == 0, "nobody can tell here"


def test_a_run_whose_base_was_replaced_is_not_exported(world: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(world / "bert-64", tmp_path / "run")
    other = wide_model(tmp_path / "other", "bert", seed=1)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["model"]["path"] = str(other)
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    for form in (export_lora, export_merged):
        with pytest.raises(InputError, match="trained on other weights"):
            form(moved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["flora", "fedex-lora"])
def test_methods_that_add_to_the_base_name_the_base_they_began_with(
    world: Path, tmp_path: Path, method: str
) -> None:
    config = causal_config(
        world / "llama",
        world / "data",
        method={"name": method, "rank": 4, "targets": ["q_proj"]},
        federation={"clients": 2, "rounds": 2},
    )
    run(RunConfig.from_dict(config), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    assert base_weights_of(tmp_path / "run" / "adapter") is not None


def test_an_export_still_says_what_it_was_trained_on(world: Path, tmp_path: Path) -> None:
    export_lora(world / "llama-64", tmp_path / "lora", rank=200)
    base_weights = base_weights_of(world / "llama-64" / "adapter")
    assert base_weights is not None
    assert base_weights_of(tmp_path / "lora") == base_weights


@pytest.mark.parametrize("form", [export_lora, export_merged])
def test_what_does_not_give_the_run_s_logits_is_not_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    from fedsb.runner import export

    real = export._logits
    calls: list[int] = []

    def drifting(model: nn.Module) -> torch.Tensor:
        calls.append(1)
        return real(model) + (0.1 if len(calls) > 1 else 0.0)

    monkeypatch.setattr(export, "_logits", drifting)
    with pytest.raises(RunFailed, match=r"logits of what was written differ by 0\.\d+"):
        form(world / "bert-64", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_check_reads_the_head_from_the_folder(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is not written right is noticed, though the base model held the right one a moment ago."""
    from fedsb.runner import export

    real = export.write_adapter

    def losing(folder: Path, *arguments: Any, **options: Any) -> None:
        real(folder, *arguments, **options)
        file = folder / "adapter_model.safetensors"
        tensors = {n: t + 1.0 if n.endswith("classifier.bias") else t for n, t in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})

    monkeypatch.setattr(export, "write_adapter", losing)
    with pytest.raises(RunFailed, match="differ"):
        export_lora(world / "bert-64", tmp_path / "out")


# ---------------------------------------------------------------- model card


def test_the_card_says_what_the_run_was(world: Path, tmp_path: Path) -> None:
    export_lora(world / "bert-64", tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front, "it is not on the hub"
    assert front["library_name"] == "peft"
    assert "datasets" not in front
    summary = json.loads((world / "bert-64" / "summary.json").read_text())
    assert f"| accuracy | {summary['base']['accuracy']:.4g} | {summary['final']['accuracy']:.4g} |" in card
    assert f"{summary['communication']['upload_parameters_per_client_per_round']:,} numbers an upload" in card
    assert "No differential privacy" in card
    assert "fed-sb" in card
    assert str(world) not in card  # no path of this machine
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    compile(code[1], "card", "exec")


def test_the_card_of_merged_weights_and_of_a_private_run(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "bert-64", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    summary["privacy"] = {"statement": "All that left any one client ... with at most epsilon = 3."}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    export_merged(tmp_path / "run", tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert summary["privacy"]["statement"] in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
