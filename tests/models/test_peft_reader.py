"""What is read of an adapter folder is what peft computes with it; more than plain LoRA is refused."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from run_helpers import tiny_bert, tiny_gpt2, tiny_llama
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedsb.adapter.attached import attach, detach
from fedsb.adapter.cores import cores_from_pairs, full_rank
from fedsb.adapter.layer import Factors
from fedsb.errors import InputError
from fedsb.models.peft_folder import put_on, read_adapter

PROBE = (torch.arange(4 * 9).reshape(4, 9) * 7 + 4) % 27
MAKE = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tiny_gpt2}
LAYERS = {"bert": ["query", "value", "dense"], "llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn"]}
PLAIN: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 8},
    "rslora": {"r": 3, "lora_alpha": 8, "use_rslora": True},
    "ranks": {"r": 2, "lora_alpha": 5, "rank_pattern": {"0.attention.self.query": 5, "q_proj": 4}},
    "alphas": {"r": 2, "alpha_pattern": {"value": 3, "v_proj": 7, "^transformer.h.1.attn.c_attn": 9}},
    "all": {
        "r": 4,
        "lora_alpha": 3,
        "use_rslora": True,
        "rank_pattern": {"value": 1, "v_proj": 6, "h.0.attn.c_attn": 2},
        "alpha_pattern": {"query": 2, "1.self_attn.q_proj": 9, "c_attn": 5},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in MAKE.items():
        make(folder / name)
    return folder


def base_of(models: Path, name: str) -> nn.Module:
    if name == "bert":
        torch.manual_seed(0)  # its classifier
        return AutoModelForSequenceClassification.from_pretrained(models / name, num_labels=3)
    return AutoModelForCausalLM.from_pretrained(models / name)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=PROBE, attention_mask=torch.ones_like(PROBE)).logits


def save_lora(base: nn.Module, folder: Path, *, safe: bool = True, **settings: Any) -> torch.Tensor:
    """A LoRA with random B, made, computed and saved by peft; its logits."""
    model = get_peft_model(base, LoraConfig(**settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder, safe_serialization=True)
    if not safe:
        as_older_folders(folder)
    return logits(model)


def as_older_folders(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("settings", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("name", MAKE)
def test_the_pairs_and_the_core_of_one_expert_give_peft_s_logits(models, tmp_path, name, settings):
    how = {"target_modules": LAYERS[name], "fan_in_fan_out": name == "gpt2"}
    expected = save_lora(base_of(models, name), tmp_path, **how, **settings)
    plain = base_of(models, name)
    assert worst(logits(plain), expected) > 1e-2
    _, pairs, _ = read_adapter(tmp_path)
    attached = attach(plain, {layer: Factors(*pair, R=None) for layer, pair in pairs.items()}, trains=())
    assert worst(logits(attached.model), expected) < 1e-5
    cores = {layer: cores_from_pairs([pair], full_rank([pair])) for layer, pair in pairs.items()}
    attached = attach(detach(attached), {layer: Factors(c.B, c.A, c.R) for layer, c in cores.items()})
    assert worst(logits(attached.model), expected) < 1e-5
    assert worst(logits(put_on(base_of(models, name), tmp_path)), expected) < 1e-6


def test_experts_of_other_ranks_and_layers_share_bases(models, tmp_path):
    """Each one's logits, with its core alone in the shared bases, are those that peft computed of it."""
    settings = {
        "a": {"target_modules": ["q_proj", "v_proj"], **PLAIN["all"]},
        "b": {"target_modules": ["v_proj", "up_proj"], "r": 5, "lora_alpha": 2},
    }
    expected = {n: save_lora(base_of(models, "llama"), tmp_path / n, **how) for n, how in settings.items()}
    pairs = {name: read_adapter(tmp_path / name)[1] for name in settings}
    layers = {layer: [pairs[name].get(layer) for name in settings] for layer in pairs["a"] | pairs["b"]}
    rank = max(full_rank(each) for each in layers.values())
    cores = {layer: cores_from_pairs(each, rank) for layer, each in layers.items()}
    for at, name in enumerate(settings):
        model = base_of(models, "llama")
        attach(model, {layer: Factors(c.B, c.A, c.R[at : at + 1]) for layer, c in cores.items()})
        assert worst(logits(model), expected[name]) < 1e-5


# The older format


def test_an_older_folder_is_read_as_the_newer_one(models, tmp_path):
    how = {"target_modules": ["q_proj"], **PLAIN["rslora"]}
    expected = save_lora(base_of(models, "llama"), tmp_path / "old", safe=False, **how)
    save_lora(base_of(models, "llama"), tmp_path / "new", **how)
    assert worst(logits(put_on(base_of(models, "llama"), tmp_path / "old")), expected) < 1e-6
    old, new = (read_adapter(tmp_path / name)[1] for name in ("old", "new"))
    assert all(torch.equal(old[layer].B, new[layer].B) for layer in new)
    theirs = PeftModel.from_pretrained(base_of(models, "llama"), tmp_path / "old")
    assert worst(logits(theirs), expected) < 1e-6


@pytest.fixture
def older(models, tmp_path) -> Path:
    save_lora(base_of(models, "llama"), tmp_path, safe=False, target_modules=["q_proj"], r=2)
    return tmp_path / "adapter_model.bin"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.update(x=torch.zeros(1).expand(10**9)), "larger than the file"),
        (lambda t: t.update(x=torch.eye(2).to_sparse()), "tensors by name and nothing else"),
        (lambda t: t.update(x=3), "tensors by name and nothing else"),
        (lambda t: t.update({5: torch.ones(1)}), "tensors by name and nothing else"),
        (lambda t: t.update(x=torch.empty(3, device="meta")), "tensors by name and nothing else"),
        (lambda t: t.update(x=torch.ones(2)), "belongs to no LoRA pair"),
        (lambda t: t.update(x=torch.tensor(float("nan"))), "not finite"),
        (lambda t: t.update({n: v.int() for n, v in t.items()}), "expected B and A of rank"),
    ],
)
def test_a_pickle_of_other_things_is_refused(older, spoil, reason):
    tensors = torch.load(older, weights_only=True)
    spoil(tensors)
    torch.save(tensors, older)
    with pytest.raises(InputError, match=reason):
        read_adapter(older.parent)


def test_a_pickle_that_unfolds_is_refused(older):
    with zipfile.ZipFile(older) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(older, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    with pytest.raises(InputError, match="it is compressed"):
        read_adapter(older.parent)


def test_a_pickle_without_a_zip_around_it_is_refused(older):
    torch.save(torch.load(older, weights_only=True), older, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not opened; save the adapter again"):
        read_adapter(older.parent)


def test_a_pickle_that_says_its_tensors_are_larger_is_refused(older):
    with zipfile.ZipFile(older) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    assert parts[name].count(b"K@tq") > 0  # 64 numbers of one storage
    parts[name] = parts[name].replace(b"K@tq", b"J\x00\x00\x00\x10tq")
    with zipfile.ZipFile(older, "w") as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    with pytest.raises(InputError, match="cannot be read"):
        read_adapter(older.parent)


# What is more than LoRA over linear layers

MORE = {
    "dora": ({"use_dora": True}, "use_dora scales whole weights"),
    "lora_bias": ({"lora_bias": True, "target_modules": ["c_attn"]}, "lora_bias trains biases"),
    "bias": (
        {"bias": "lora_only", "target_modules": ["c_attn"]},
        "bias 'lora_only' trains the base's biases",
    ),
    "embedding": ({"target_modules": ["wte", "c_attn"]}, "it adapts an embedding"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights pissa changes the base"),
}


@pytest.mark.parametrize(("settings", "reason"), MORE.values(), ids=MORE)
def test_what_is_more_than_plain_lora_is_refused_with_a_cure(models, tmp_path, settings, reason):
    save_lora(base_of(models, "gpt2"), tmp_path, **{"target_modules": ["c_attn"], "r": 2} | settings)
    with pytest.raises(InputError, match=reason) as refused:
        read_adapter(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "merge_and_unload" in str(refused.value)


def test_another_kind_is_refused_with_its_name(models, tmp_path):
    from peft import LoHaConfig

    how = LoHaConfig(r=2, target_modules=["q_proj"])
    get_peft_model(base_of(models, "llama"), how).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="its peft_type is LOHA"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank_pattern": {"q_proj": 5}}, "expected B and A of rank 5"),
        ({"rank_pattern": {"0.self_attn.q_proj": 2}, "r": 3}, "layers.1.*expected B and A of rank 3"),
        ({"alpha_pattern": {"q_proj": "x"}}, "lora_alpha"),
    ],
)
def test_ranks_that_the_tensors_do_not_have_are_refused(older, tmp_path, changes, reason):
    file = older.parent / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=reason):
        read_adapter(older.parent)


def test_safetensors_are_taken_before_a_pickle(older, tmp_path):
    other = shutil.copytree(older.parent, tmp_path / "both")
    tensors = torch.load(older, weights_only=True)
    from safetensors.torch import save_file

    save_file({name: 2 * value for name, value in tensors.items()}, other / "adapter_model.safetensors")
    both, one = read_adapter(other)[1], read_adapter(older.parent)[1]
    assert all(torch.equal(both[layer].A, 2 * one[layer].A) for layer in one)
