"""Bases that people bring: heads of other tasks, decoders without a pad id, quantization, old files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import DECODER, ENCODER
from run_helpers import WORDS, causal_config, classification_config, save_tokenizer, tiny_gpt2, write_data
from torch import nn

from fedsb import RunConfig, run
from fedsb.cli.doctor import examine
from fedsb.errors import InputError
from fedsb.models import load_base, load_tokenizer
from fedsb.models.config_json import stored_config
from fedsb.models.head import head_note, head_parameters
from fedsb.models.shapes import build_on_meta, load_shapes
from fedsb.report.progress import Silent
from fedsb.runner.export import export_lora, export_merged

SHORT = {
    "federation": {"clients": 1, "rounds": 1},
    "method__init": {"samples": 6, "head_warmup": None},
    "training__batch_size": 6,
}
NAMES = ("flat", "neg", "pos")
"""The classes of the rows."""


class Stages(Silent):
    """Keeps the lines that a run says."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_data(folder, train=12, test=6)
    return folder


def saved(folder: Path, kind: str, config: Any, *, causal: bool) -> Path:
    """A model with random weights, and the tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        getattr(transformers, kind)(config).save_pretrained(folder)
    save_tokenizer(folder, causal=causal)
    return folder


def says(folder: Path, **entries: Any) -> Path:
    """The folder with these entries in its config.json; those that are ... are taken out."""
    config = json.loads((folder / "config.json").read_text()) | entries
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def classifier(folder: Path, names: list[str] | None, *, num_labels: int, **more: Any) -> Path:
    labels = {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {}}
    config = transformers.BertConfig(**ENCODER, num_labels=num_labels, **labels, **more)
    if names is not None:
        config.label2id = {name: i for i, name in enumerate(names)}
    return saved(folder, "BertForSequenceClassification", config, causal=False)


def head_of(model: nn.Module) -> torch.Tensor:
    return head_parameters(model)["classifier.weight"].detach()


# ---------------------------------------------------------------- heads of other tasks

OTHER_HEADS: dict[str, Callable[[Path], Path]] = {
    "five classes": lambda f: classifier(f, [f"{i} stars" for i in range(1, 6)], num_labels=5),
    "as many, with other names": lambda f: classifier(f, ["toxic", "insult", "threat"], num_labels=3),
    "as many, in another order": lambda f: classifier(f, ["pos", "neg", "flat"], num_labels=3),
    "as many, without names": lambda f: classifier(f, None, num_labels=3),
    "several labels at once": lambda f: classifier(
        f, ["a", "b"], num_labels=2, problem_type="multi_label_classification"
    ),
    "a number": lambda f: classifier(f, None, num_labels=1, problem_type="regression"),
}


@pytest.mark.parametrize("name", ["five classes", "as many, with other names"])
def test_a_run_says_that_it_replaces_a_head(name: str, data: Path, tmp_path: Path) -> None:
    folder = OTHER_HEADS[name](tmp_path / "model")
    watched = Stages()
    config = RunConfig.from_dict(classification_config(folder, data, **SHORT))
    result = run(config, tmp_path / "out", progress=watched)
    assert any("is for other labels" in s and "a fresh one takes its place" in s for s in watched.stages)
    assert head_of(result.model).shape == (3, 32)


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_a_head_of_another_task_is_replaced_by_a_fresh_one(name: str, tmp_path: Path) -> None:
    folder = OTHER_HEADS[name](tmp_path / "model")
    note = head_note(stored_config(str(folder)), 3, NAMES)
    assert note is not None
    assert "is for other labels" in note
    stored = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    loaded = load_base(str(folder), tokenizer=None, num_labels=3, label_names=NAMES, seed=2)
    shapes = load_shapes(str(folder), num_labels=3, label_names=NAMES, seed=2)
    assert torch.equal(head_of(loaded), head_of(shapes))
    if head_of(stored).shape == head_of(loaded).shape:
        assert not torch.equal(head_of(stored), head_of(loaded))
    base, kept = (dict(m.base_model.named_parameters()) for m in (stored, loaded))
    assert all(torch.equal(base[key], kept[key]) for key in base)
    assert list(loaded.config.id2label.values()) == list(NAMES)  # type: ignore[union-attr]


def test_a_head_for_the_same_labels_is_kept_and_this_is_said(data: Path, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", list(NAMES), num_labels=3)
    stored = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    loaded = load_base(str(folder), tokenizer=None, num_labels=3, label_names=NAMES)
    assert torch.equal(head_of(stored), head_of(loaded))
    watched = Stages()
    config = RunConfig.from_dict(classification_config(folder, data, **SHORT))
    run(config, tmp_path / "out", progress=watched)
    assert any("head is kept" in stage for stage in watched.stages)
    assert any("head is kept" in finding.detail for finding in examine(config))
    with pytest.raises(InputError, match="the server has no weights of it"):
        load_shapes(str(folder), num_labels=3, label_names=NAMES)


def test_a_fresh_head_does_not_depend_on_what_else_the_checkpoint_lacks(tmp_path: Path) -> None:
    folder = saved(tmp_path, "BertForMaskedLM", transformers.BertConfig(**ENCODER), causal=False)  # no pooler
    loaded = load_base(str(folder), tokenizer=None, num_labels=3, label_names=NAMES, seed=2)
    shapes = load_shapes(str(folder), num_labels=3, label_names=NAMES, seed=2)
    assert torch.equal(head_of(loaded), head_of(shapes))


def test_a_base_of_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    folder = classifier(tmp_path, None, num_labels=5)
    says(folder, intermediate_size=48)
    with pytest.raises(
        InputError, match=r"intermediate\.dense\.bias is 64 in the weights .*, 48 by its config"
    ):
        load_base(str(folder), tokenizer=None, num_labels=3)


# ---------------------------------------------------------------- decoders that classify


def gpt2(folder: Path) -> Path:
    return tiny_gpt2(folder)


def llama(folder: Path, **changes: Any) -> Path:
    return saved(folder, "LlamaForCausalLM", transformers.LlamaConfig(**DECODER | changes), causal=True)


DECODERS: dict[str, Callable[[Path], Path]] = {
    "gpt2": gpt2,
    "llama": lambda f: says(llama(f), pad_token_id=...),
    "llama with null": lambda f: says(llama(f), pad_token_id=None),
    "mistral": lambda f: says(
        saved(f, "MistralForCausalLM", transformers.MistralConfig(**DECODER), causal=True), pad_token_id=...
    ),
    "gpt-neox": lambda f: saved(
        f,
        "GPTNeoXForCausalLM",
        transformers.GPTNeoXConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        causal=True,
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_without_a_pad_id_classifies(name: str, data: Path, tmp_path: Path) -> None:
    folder = DECODERS[name](tmp_path / "model")
    assert not isinstance(json.loads((folder / "config.json").read_text()).get("pad_token_id"), int)
    config = RunConfig.from_dict(classification_config(folder, data, **SHORT))
    result = run(config, tmp_path / "out")
    end = load_tokenizer(str(folder)).eos_token_id
    assert result.model.config.pad_token_id == end  # type: ignore[union-attr]
    assert result.summary["final"]["loss"] < 10
    assert build_on_meta(str(folder), num_labels=3).config.pad_token_id == 0  # type: ignore[union-attr]


def test_doctor_is_content_with_a_decoder_that_classifies(data: Path, tmp_path: Path) -> None:
    config = RunConfig.from_dict(classification_config(gpt2(tmp_path / "model"), data, **SHORT))
    assert all(finding.ok for finding in examine(config))


# ---------------------------------------------------------------- stored quantization

QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "compressed-tensors",
    ),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "mxfp4"),
    "8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_weights_stored_quantized_are_refused_before_loading(name: str, data: Path, tmp_path: Path) -> None:
    stored, method = QUANTIZED[name]
    folder = says(llama(tmp_path / "model"), quantization_config=stored)
    (folder / "model.safetensors").write_bytes(b"never looked at")
    config = RunConfig.from_dict(causal_config(folder, data, **SHORT))
    said = f"stored quantized \\({method}\\).*take the model that they were made from.*load_in_4bit"
    with pytest.raises(InputError, match=said):
        run(config, tmp_path / "out")
    assert any(not finding.ok and method in finding.detail for finding in examine(config))


def test_weights_stored_in_four_bits_ask_for_the_key(data: Path, tmp_path: Path) -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    folder = says(llama(tmp_path / "model"), quantization_config=stored)
    with pytest.raises(InputError, match=r"set model\.load_in_4bit: true \(pip install 'fedsb\[4bit\]'\)"):
        load_base(str(folder), tokenizer=None, num_labels=None)


# ---------------------------------------------------------------- encoder-decoders

ENCODER_DECODERS: dict[str, tuple[str, Any]] = {
    "t5": (
        "T5ForConditionalGeneration",
        transformers.T5Config(
            vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0
        ),
    ),
    "bart": (
        "BartForConditionalGeneration",
        transformers.BartConfig(
            vocab_size=len(WORDS),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=3,
            forced_eos_token_id=3,
        ),
    ),
    "pegasus": (
        "PegasusForConditionalGeneration",
        transformers.PegasusConfig(
            vocab_size=len(WORDS),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
        ),
    ),
}


@pytest.mark.parametrize("make", [causal_config, classification_config], ids=["causal-lm", "classification"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_is_refused_by_name(name: str, make: Any, data: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", *ENCODER_DECODERS[name], causal=True)
    with pytest.raises(InputError, match=rf"is an encoder-decoder \({name}\).*take a decoder, such as"):
        run(RunConfig.from_dict(make(folder, data, **SHORT)), tmp_path / "out")
    says(folder, is_encoder_decoder=...)  # by its family, whatever the file says
    with pytest.raises(InputError, match=f"is an encoder-decoder \\({name}\\)"):
        load_tokenizer(str(folder))


def test_a_family_without_such_a_model_is_named(tmp_path: Path) -> None:
    config = transformers.EsmConfig(**ENCODER, mask_token_id=1)
    folder = saved(tmp_path, "EsmForMaskedLM", config, causal=True)
    with pytest.raises(InputError, match="transformers has no language model of the family Esm"):
        load_base(str(folder), tokenizer=None, num_labels=None)


# ---------------------------------------------------------------- older files


def pickled(folder: Path) -> Path:
    llama(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def pickled_in_parts(folder: Path) -> Path:
    state = torch.load(pickled(folder) / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def in_parts(folder: Path) -> Path:
    llama(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("save", [pickled, pickled_in_parts, in_parts], ids=lambda save: save.__name__)
def test_older_and_split_files_load(save: Callable[[Path], Path], data: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "old")
    whole = load_base(str(llama(tmp_path / "new")), tokenizer=None, num_labels=None)
    loaded = load_base(str(folder), tokenizer=None, num_labels=None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True))
    run(RunConfig.from_dict(causal_config(folder, data, **SHORT)), tmp_path / "out")


def test_a_pickle_with_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    torch.save({"model.norm.weight": Path("anything")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle with more than tensors in it, which is not opened"):
        load_base(str(folder), tokenizer=None, num_labels=None)


# ---------------------------------------------------------------- models of texts and images


def gemma3(folder: Path) -> Path:
    text = transformers.Gemma3TextConfig(**DECODER, head_dim=8, query_pre_attn_scalar=8, sliding_window=16)
    vision = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    tokens = {"boi_token_index": 20, "eoi_token_index": 21, "image_token_index": 22}
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, **tokens
    )
    return saved(folder, "Gemma3ForConditionalGeneration", config, causal=True)


def test_the_text_part_of_a_model_of_images_is_trained_and_exported(data: Path, tmp_path: Path) -> None:
    config = RunConfig.from_dict(causal_config(gemma3(tmp_path / "model"), data, **SHORT))
    watched = Stages()
    run(config, tmp_path / "run", progress=watched)
    assert any("vision_tower" in s and "not on the way to the output" in s for s in watched.stages)
    export_lora(tmp_path / "run", tmp_path / "lora")
    export_merged(tmp_path / "run", tmp_path / "merged")
    before, after = (
        dict(load_base(str(tmp_path / f), tokenizer=None, num_labels=None).named_parameters())
        for f in ("model", "merged")
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("language_model" in name for name in moved)


def test_a_model_of_images_without_a_text_part_of_its_own_is_refused_by_name(
    data: Path, tmp_path: Path
) -> None:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = transformers.LlamaConfig(**DECODER)
    config = transformers.LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
    folder = saved(tmp_path / "model", "LlavaForConditionalGeneration", config, causal=True)
    with pytest.raises(InputError, match="transformers has no language model of the family Llava"):
        run(RunConfig.from_dict(causal_config(folder, data, **SHORT)), tmp_path / "out")
