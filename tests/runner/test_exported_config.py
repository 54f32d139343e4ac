"""Merged exports describe themselves: a pipeline that knows the folder alone gives the run's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_helpers import (
    WORDS,
    causal_config,
    changed,
    classification_config,
    main_status,
    rows,
    save_tokenizer,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    write_data,
    write_rows,
)
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from fedsb import RunConfig, run
from fedsb.models.public_name import public_name
from fedsb.runner.export import export_lora, export_merged
from fedsb.runner.result import RunResult

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TIED = IDS | SIZE | {"tie_word_embeddings": True, "initializer_range": 0.2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama"), tiny_gpt2(folder / "gpt2")
    for name, config in (
        ("tied-llama", LlamaConfig(**TIED)),
        ("tied-gemma", GemmaConfig(head_dim=8, num_key_value_heads=4, **TIED)),
    ):
        kind = LlamaForCausalLM if name == "tied-llama" else GemmaForCausalLM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            kind(config).save_pretrained(folder / name)
        save_tokenizer(folder / name, causal=True)
    write_data(folder / "data", train=36, test=9)
    return folder


def causal(world: Path, model: str, **changes: Any) -> dict[str, Any]:
    once = {"federation__rounds": 1, "method__init": {"samples": 8}}
    return causal_config(world / model, world / "data", **once | changes)


def classified(world: Path, **changes: Any) -> dict[str, Any]:
    return classification_config(world / "bert", world / "data", federation__rounds=1, **changes)


def done(config: dict[str, Any], folder: Path) -> RunResult:
    return run(RunConfig.from_dict(config), folder)


def json_of(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text())
    return document


# ---------------------------------------------------------------- tied weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["tied-llama", "tied-gemma", "gpt2"])
def test_an_adapted_output_layer_is_tied_no_more(world: Path, tmp_path: Path, model: str, dtype: str) -> None:
    targets = ["lm_head", "c_attn" if model == "gpt2" else "q_proj"]
    done(causal(world, model, method__targets=targets, model__dtype=dtype), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    config = json_of(tmp_path / "merged" / "config.json")
    assert config["tie_word_embeddings"] is False
    assert config["dtype"] == dtype
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    embeddings = next(t for n, t in tensors.items() if n.endswith(("embed_tokens.weight", "wte.weight")))
    assert not torch.equal(tensors["lm_head.weight"], embeddings)
    base = AutoModelForCausalLM.from_pretrained(world / model, dtype=getattr(torch, dtype))
    assert torch.equal(base.get_input_embeddings().weight, embeddings)


@pytest.mark.parametrize("model", ["tied-llama", "tied-gemma"])
def test_what_no_adapter_changed_stays_tied(world: Path, tmp_path: Path, model: str) -> None:
    done(causal(world, model), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    assert json_of(tmp_path / "merged" / "config.json")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


# ---------------------------------------------------------------- pipelines


def probabilities(result: RunResult, tokenizer: Any, *texts: Any) -> torch.Tensor:
    """Of each class, by the run's own model."""
    with torch.no_grad():
        logits = [result.model.eval()(**tokenizer(*text, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(logits).softmax(-1)


def scores_of(answers: list[list[dict[str, Any]]], names: list[str]) -> torch.Tensor:
    by_name = [{answer["label"]: answer["score"] for answer in each} for each in answers]
    assert all(set(each) == set(names) for each in by_name)
    return torch.tensor([[each[name] for name in names] for each in by_name])


def test_a_pipeline_gives_the_run_s_probabilities(world: Path, tmp_path: Path) -> None:
    result = done(classified(world), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    classify = pipeline("text-classification", str(tmp_path / "merged"), top_k=None)
    texts = [row["text"] for row in rows(6, seed=5)]
    expected = probabilities(result, classify.tokenizer, *([text] for text in texts))
    assert torch.allclose(scores_of(classify(texts), ["flat", "neg", "pos"]), expected, atol=1e-5)


def test_a_pipeline_gives_the_probabilities_of_pairs(world: Path, tmp_path: Path) -> None:
    result = done(classified(world, task__text=["text", "site"]), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    classify = pipeline("text-classification", str(tmp_path / "merged"), top_k=None)
    pairs = [(row["text"], "dull w3") for row in rows(6, seed=5)]
    expected = probabilities(result, classify.tokenizer, *pairs)
    answers = [classify({"text": a, "text_pair": b}) for a, b in pairs]
    assert torch.allclose(scores_of(answers, ["flat", "neg", "pos"]), expected, atol=1e-5)


def test_a_pipeline_gives_the_run_s_values_of_a_regression(world: Path, tmp_path: Path) -> None:
    result = done(classified(world, task__label="score"), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    rate = pipeline("text-classification", str(tmp_path / "merged"))
    texts = [row["text"] for row in rows(6, seed=5)]
    with torch.no_grad():
        expected = [
            result.model.eval()(**rate.tokenizer(text, return_tensors="pt")).logits.item() for text in texts
        ]
    assert [answer["score"] for answer in rate(texts)] == pytest.approx(expected, abs=1e-5)
    assert max(expected) > 1, "a sigmoid would show"


GENERATION = {
    "none": {},
    "inconsistent": {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    "sampling": {"do_sample": True, "temperature": 5.0, "max_length": 7},
    "penalties": {"repetition_penalty": 4.0, "no_repeat_ngram_size": 1, "num_beams": 2},
    "other ends": {"eos_token_id": [3, 20, 21, 22, 23, 24, 25], "forced_eos_token_id": 5},
}


@pytest.mark.parametrize("case", GENERATION)
def test_a_pipeline_gives_the_run_s_texts(world: Path, tmp_path: Path, case: str) -> None:
    """Whatever the base's author wished for texts of his, in either of two files."""
    base = tiny_llama(tmp_path / "base")
    for name, more in (
        ("generation_config.json", GENERATION[case]),
        ("config.json", {"task_specific_params": {"text-generation": GENERATION[case]}}),
    ):
        (base / name).write_text(json.dumps({**json_of(base / name), **more}))
    values = changed(causal(world, "llama"), model__path=str(tmp_path / "base"))
    values["federation"]["rounds"] = 2
    done(values, tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    answer = pipeline("text-generation", str(tmp_path / "merged"))
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    texts = [answer(s["prompt"], return_full_text=False)[0]["generated_text"].strip() for s in samples]
    assert texts == [sample["answer"].strip() for sample in samples]
    assert any(texts)
    assert not json_of(tmp_path / "merged" / "config.json").get("task_specific_params")


def test_a_base_s_own_classes_are_not_the_export_s(world: Path, tmp_path: Path) -> None:
    """Somebody's classifier of several labels at once: its sigmoid and its names are gone."""
    base = BertForSequenceClassification.from_pretrained(
        world / "bert",
        problem_type="multi_label_classification",
        id2label={0: "toxic", 1: "insult", 2: "threat"},
        label2id={"toxic": 0, "insult": 1, "threat": 2},
    )
    base.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    done(changed(classified(world), model__path=str(tmp_path / "base")), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    config = json_of(tmp_path / "merged" / "config.json")
    assert config["problem_type"] == "single_label_classification"
    assert config["label2id"] == {"flat": 0, "neg": 1, "pos": 2}
    assert config["architectures"] == ["BertForSequenceClassification"]
    classify = pipeline("text-classification", str(tmp_path / "merged"), top_k=None)
    assert sum(answer["score"] for answer in classify(["good w1"])[0]) == pytest.approx(1.0)


# ---------------------------------------------------------------- what 16 bits cost


def update_and_kept(world: Path, run_folder: Path, merged: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The run's update and what the written weights have of it, all layers as one vector."""
    adapter = load_file(run_folder / "adapter" / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(world / "llama", dtype=dtype).state_dict()
    written = load_file(merged / "model.safetensors")
    layers = [name.removesuffix(".lora_A.weight") for name in adapter if name.endswith("lora_A.weight")]
    updates, kept = [], []
    for layer in layers:
        name = layer.removeprefix("base_model.model.") + ".weight"
        updates.append((adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]).flatten())
        kept.append((written[name].double() - base[name].double()).flatten())
    return torch.cat(updates).double(), torch.cat(kept)


@pytest.mark.parametrize(
    ("run_dtype", "dtype"),
    [
        ("bfloat16", None),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float16", None),
        ("float32", None),
    ],
)
def test_the_share_that_rounding_lost(
    world: Path, tmp_path: Path, run_dtype: str, dtype: str | None, capsys: Any, monkeypatch: Any
) -> None:
    small = {"training__learning_rate": 1e-4, "method__init__step_size": 1e-5, "model__dtype": run_dtype}
    done(causal(world, "llama", **small), tmp_path / "run")
    merged = export_merged(tmp_path / "run", tmp_path / "merged", dtype=dtype)
    written = dtype or run_dtype
    update, kept = update_and_kept(world, tmp_path / "run", tmp_path / "merged", getattr(torch, written))
    if (run_dtype, dtype) == ("bfloat16", "float32"):  # the base that was trained on was rounded
        base, _ = update_and_kept(world, tmp_path / "run", tmp_path / "merged", torch.bfloat16)
        update, kept = base, update_and_kept(world, tmp_path / "run", tmp_path / "merged", torch.bfloat16)[1]
    expected = float((kept - update).norm() / update.norm())
    assert merged.lost_share == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert (merged.lost_share > 0.2) == (written != "float32")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"ounding to {written} lost {100 * merged.lost_share:.3g} % of the update" in card
    arguments = ["--dtype", dtype] if dtype else []
    out = ("--out", tmp_path / "again", "--format", "merged")
    assert main_status(monkeypatch, "export", tmp_path / "run", *out, *arguments) == 0
    assert ("% of the update" in capsys.readouterr().out) == (written != "float32")
    assert json_of(tmp_path / "again" / "config.json")["dtype"] == written
    dtypes = {t.dtype for t in load_file(tmp_path / "again" / "model.safetensors").values()}
    assert dtypes == {getattr(torch, written)}


def test_a_16_bit_classifier_is_whole_in_one_dtype(world: Path, tmp_path: Path) -> None:
    """Its head was trained in float32; what a stranger loads is what was written and measured."""
    result = done(classified(world, model__dtype="bfloat16"), tmp_path / "run")
    for dtype in (None, "float32"):
        export_merged(tmp_path / "run", tmp_path / str(dtype), dtype=dtype)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(dtype))
        assert {p.dtype for p in loaded.parameters()} == {torch.float32 if dtype else torch.bfloat16}
    ids = torch.arange(12).reshape(2, 6) + 4
    with torch.no_grad():
        ours, theirs = result.model.eval()(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 0.05 * ours.abs().max()


def test_an_export_in_float32_gives_the_logits_of_float32(world: Path, tmp_path: Path) -> None:
    """The base as it was trained on, in bfloat16, and the update to the last digit."""
    done(causal(world, "llama", model__dtype="bfloat16"), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged", dtype="float32")
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(world / "llama", dtype=torch.bfloat16).float()
    expected = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(12).reshape(2, 6) + 4
    with torch.no_grad():
        ours, theirs = expected(input_ids=ids).logits, merged(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("bert-base-cased", "bert-base-cased"),
        ("org/model", "org/model"),
        ("/home/me/models/bert", "bert"),
        ("/home/me/bert/", "bert"),
        ("./there/my bért", "my bért"),
        ("~/x/bert", "bert"),
        ("/c/hub/models--org--a.model-2/snapshots/0f3a", "org/a.model-2"),
        ("/c/hub/models--org--two--dashes/snapshots/0f3a/", "org/two--dashes"),
    ],
)
def test_names_for_others(path: str, name: str) -> None:
    assert public_name(path) == name


def test_no_path_of_this_machine_leaves(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blanks and accents in every path, and the base and the data named from where one stands."""
    home = tmp_path / "sp ace" / "über"
    write_data(home / "my dätä", train=36, test=9)
    tiny_bert(home / "b ert")
    monkeypatch.chdir(home)
    config = classification_config(Path("b ert"), Path("my dätä"), federation__rounds=1)
    done(config, Path("r un"))
    export_merged(Path("r un"), Path("merged model"))
    export_lora(Path("r un"), Path("lora adapter"))
    shared = [Path("r un/adapter"), Path("merged model"), Path("lora adapter")]
    for file in (file for folder in shared for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes().decode(errors="replace")
        for part in (str(tmp_path), "sp ace", "über", "\\u00fcber", "my d", "train.jsonl", "test.jsonl"):
            assert part not in content, (file, part)
    for folder in shared[::2]:
        assert json_of(folder / "adapter_config.json")["base_model_name_or_path"] == "b ert"


@pytest.mark.parametrize(
    ("sources", "named"),
    [
        ("DATA", None),
        ({"a": "DATA", "b": "DATA"}, None),
        ({"a": "DATA", "b": "org/rows"}, ["org/rows"]),
        ("org/rows", ["org/rows"]),
    ],
)
def test_the_card_names_data_of_the_hub_alone(
    world: Path, tmp_path: Path, sources: Any, named: list[str] | None
) -> None:
    done(classified(world), tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    local = str(write_rows(tmp_path / "secret ward.jsonl", rows(3, seed=1)))
    place = {"DATA": local}.get
    config["data"]["train"] = (
        {name: place(source, source) for name, source in sources.items()}
        if isinstance(sources, dict)
        else place(sources, sources)
    )
    config["model"]["path"] = str(world / "bert")
    file.write_text(yaml.safe_dump(config))
    export_lora(tmp_path / "run", tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]).get("datasets") == named
    assert "secret" not in card
