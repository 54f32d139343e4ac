"""The doctor says ok if and only if a run works: cases from the field, a table of families and changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import save_byte_tokenizer
from run_helpers import FILLERS, KEYS, causal_config, classification_config, write_rows
from tiny_models import FAMILIES, POSITIONS, VOCABULARY, Tiny
from transformers import AutoTokenizer

from fedsb import run
from fedsb.cli import doctor as doctor_module
from fedsb.cli.doctor import Finding, Stage, examine
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.federation.server import broadcast
from fedsb.report.progress import Silent
from fedsb.runner import prepare_model, prepared
from fedsb.runner.clients import local_clients
from fedsb.runner.evaluate import evaluate
from fedsb.runner.prepare_model import local_model_of
from fedsb.runner.prepared import prepare
from fedsb.runner.round_zero import begin

SHORT, LONG = 6, 3 * POSITIONS
"""Words in a row."""


def write_texts(folder: Path, words: int) -> Path:
    """Rows of so many words; the last word of the vocabulary is in the prompts of decoders."""
    folder.mkdir(exist_ok=True)
    texts = [" ".join((FILLERS * 9)[i : i + words]) for i in range(6)]
    labels = list(KEYS.values()) * 2
    pairs = zip(texts, labels, strict=True)
    rows = [{"text": text, "other": "w1 w2", "label": label} for text, label in pairs]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[:3])
    return folder


def config_for(family: Tiny, model: Path, data: Path, **changes: Any) -> RunConfig:
    """One client, one step; every part of a start that computes."""
    init = {"samples": 4, "head_warmup": {"rounds": 1, "steps": 1}}
    settings: dict[str, Any] = {
        "method__init": init,
        "method__rank": 2,
        "federation": {"clients": 1, "rounds": 1},
        "training__batch_size": 6,
        "training__max_length": 20,
    }
    if not family.causal:
        return RunConfig.from_dict(classification_config(model, data, **settings | changes))
    settings |= {"task__prompt": "{text} :", "task__max_new_tokens": 2, "evaluation__generate": 1}
    return RunConfig.from_dict(causal_config(model, data, **settings | changes))


def one_step(config: RunConfig, folder: Path) -> None:
    """A run up to its first client's answer."""
    run = prepare(config, folder, Silent())
    start = begin(run)
    local_model = local_model_of(config, run.data, run.base, start.factors)
    message = broadcast(start.state, local_model.exchange, 0, local_model.exchange.whole)
    local_clients(config, run.data, local_model, None)(0).answer(message)


def error_of_a_step(config: RunConfig, folder: Path) -> Exception | None:
    try:
        one_step(config, folder)
    except Exception as error:
        return error
    return None


def wrong(config: RunConfig) -> list[Finding]:
    return [finding for finding in examine(config) if finding.ok is False]


# ---------------------------------------------------------------- a table of families and changes

Change = Callable[[Tiny], tuple[dict[str, Any], dict[str, Any], int]]
"""Family -> (arguments of its config, settings of the run, words in a row)."""


def of_fewer_tokens(family: Tiny) -> dict[str, Any]:
    """As many as the model needs for its special tokens; rows have more."""
    return {"n_words" if "n_words" in family.arguments else "vocab_size": 12}


CHANGES: dict[str, Change] = {
    "plain": lambda family: ({}, {}, SHORT),
    "as long as it goes": lambda family: ({}, {"training__max_length": family.usable or LONG}, LONG),
    "one token more": lambda family: ({}, {"training__max_length": (family.usable or LONG) + 1}, LONG),
    "fewer embeddings": lambda family: (of_fewer_tokens(family), {}, SHORT),
    "a pad id out of reach": lambda family: ({}, {}, SHORT),
    "a pair in one segment": lambda family: (
        {"type_vocab_size": 1} if family.segments else {},
        {} if family.causal else {"task__text": ["text", "other"]},
        SHORT,
    ),
    "checkpointing": lambda family: ({}, {"training__gradient_checkpointing": True}, SHORT),
    "16 bits": lambda family: ({}, {"model__dtype": "bfloat16"}, SHORT),
    "all layers": lambda family: ({}, {"method__targets": "all-linear"}, SHORT),
}
TRIED_BY_ALL = 1
"""Changes that each family is tried with (more take longer); the next family begins where this one ended."""


def combinations() -> Iterator[tuple[str, str]]:
    names, number = list(CHANGES), 0
    for family in FAMILIES:
        for _ in range(TRIED_BY_ALL):
            name, number = names[number % len(names)], number + 1
            if not (name == "one token more" and FAMILIES[family].trained):  # can be computed, and is refused
                yield family, name


def set_pad(folder: Path, pad: int) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": pad}))


@pytest.mark.parametrize(("name", "change"), combinations())
def test_the_doctor_says_ok_if_and_only_if_a_step_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: str
) -> None:
    family = FAMILIES[name]
    arguments, settings, words = CHANGES[change](family)
    model = family.save(tmp_path / "model", **arguments)
    if change == "a pad id out of reach":
        set_pad(model, VOCABULARY + 5)
    config = config_for(family, model, write_texts(tmp_path / "data", words), **settings)
    findings = wrong(config)
    monkeypatch.setattr(prepared, "try_rows", lambda *a: 0)  # a run that does not look before
    monkeypatch.setattr(prepare_model, "check_limits", lambda *a, **more: None)
    error = error_of_a_step(config, tmp_path / "run")
    assert bool(findings) == (error is not None), (findings, error)
    for finding in findings:
        assert ":" in finding.detail
        assert not re.search(rf"Traceback|not expected|defect|\b({'|'.join(FILLERS)})\b", finding.detail)


# ---------------------------------------------------------------- cases from the field


def refused(config: RunConfig, folder: Path, *parts: str) -> None:
    """The doctor has one finding with these parts, and a run ends with the same text and leaves nothing."""
    (finding,) = wrong(config)
    assert all(part in finding.detail for part in parts), finding.detail
    with pytest.raises(InputError) as error:
        run(config, folder)
    assert str(error.value) == finding.detail
    assert not folder.exists() or not list(folder.glob("*.json"))


def works(config: RunConfig, folder: Path) -> dict[str, Any]:
    assert wrong(config) == []
    return run(config, folder).summary


def test_roberta_has_fewer_positions_than_rows_in_its_table(tmp_path: Path) -> None:
    family, data = FAMILIES["roberta"], write_texts(tmp_path / "data", LONG)
    model = family.save(tmp_path / "model")
    works(config_for(family, model, data, training__max_length=22), tmp_path / "fits")
    parts = "training.max_length: expected at most 22", "24 in its table, the first 2", "found 23"
    refused(config_for(family, model, data, training__max_length=23), tmp_path / "long", *parts)


@pytest.mark.parametrize("name", ["xlnet", "bloom", "mamba", "deberta-v3"])
def test_a_model_without_a_limit_takes_any_length(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    config = config_for(
        family,
        family.save(tmp_path / "model"),
        write_texts(tmp_path / "data", LONG),
        training__max_length=10 * POSITIONS,
        method__targets="all-linear" if name != "mamba" else ["in_proj", "out_proj"],
    )
    works(config, tmp_path / "run")


def test_a_rotary_model_is_not_taken_beyond_what_it_was_trained_on(tmp_path: Path) -> None:
    family, data = FAMILIES["llama"], write_texts(tmp_path / "data", LONG)
    config = config_for(family, family.save(tmp_path / "model"), data, training__max_length=POSITIONS + 1)
    refused(config, tmp_path / "run", "at most 24", "trained on", "rope scaling")


def add_tokens(folder: Path, *tokens: str, **names: str) -> Path:
    """Tokens that the model of this folder has no embeddings for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(names)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mixtral"])
def test_a_pad_token_without_an_embedding_is_not_used(tmp_path: Path, name: str) -> None:
    family, data = FAMILIES[name], write_texts(tmp_path / "data", SHORT)
    model = add_tokens(family.save(tmp_path / "model"), pad_token="[NEW]")
    config = config_for(family, model, data)
    assert prepare(config, tmp_path / "no", Silent()).data.tokenizer.pad_token == "[SEP]"
    works(config, tmp_path / "run")


def test_added_tokens_are_refused_only_where_a_row_has_one(tmp_path: Path) -> None:
    family, data = FAMILIES["llama"], write_texts(tmp_path / "data", SHORT)
    model = add_tokens(family.save(tmp_path / "model"), "<|user|>", "<|bot|>")
    works(config_for(family, model, data), tmp_path / "without")
    config = config_for(family, model, data, task__prompt="{text} <|bot|>")
    sizes = f"model.path: the tokenizer in '{model}' has {VOCABULARY + 2} tokens, the model embeddings for 28"
    refused(config, tmp_path / "with", sizes, f"token {VOCABULARY + 1}", "resize_token_embeddings(30)")


def test_an_evaluation_looks_at_limits_too(tmp_path: Path) -> None:
    family, data = FAMILIES["llama"], write_texts(tmp_path / "data", LONG)
    model = add_tokens(family.save(tmp_path / "model"), "<|bot|>")
    config = config_for(family, model, data, task__prompt="{text} <|bot|>")
    with pytest.raises(InputError, match=r"model\.path: the tokenizer in .* the data have token 28"):
        evaluate(config, model=str(model))
    benchmark = {"it": {"data": str(data / "test.jsonl"), "score": "exact"}}
    asked = config_for(family, model, data, evaluation__benchmarks=benchmark)
    assert evaluate(asked, model=str(model))["metrics"]["it_accuracy"] >= 0
    with pytest.raises(InputError, match=r"training\.max_length: expected at most 24"):
        evaluate(config_for(family, model, data, training__max_length=25), model=str(model))


@pytest.mark.parametrize("name", ["roberta", "distilbert", "mpnet", "albert", "xlm", "deberta"])
def test_a_second_text_needs_no_second_segment(tmp_path: Path, name: str) -> None:
    """With a tokenizer that gives token types, as BERT's does."""
    family, data = FAMILIES[name], write_texts(tmp_path / "data", SHORT)
    config = config_for(family, family.save(tmp_path / "model"), data, task__text=["text", "other"])
    examples = prepare(config, tmp_path / "no", Silent()).data.train
    assert {1} <= set(examples[0]["token_type_ids"])
    works(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "opt", "qwen2_moe"])
def test_a_decoder_without_a_pad_id_in_its_config_classifies(tmp_path: Path, name: str) -> None:
    family, data = FAMILIES[name], write_texts(tmp_path / "data", SHORT)
    family.save(tmp_path / "model", pad_token_id=None)
    targets = ["q_proj", "v_proj"] if name == "qwen2_moe" else None
    changes = {"method__targets": targets, "model__check_memory": True}
    config = config_for(replace(family, causal=False), tmp_path / "model", data, **changes)
    assert {f.what: f.detail for f in examine(config)}["memory"].startswith("about ")
    works(config, tmp_path / "run")


CHECKPOINTING = {"training__gradient_checkpointing": True}


@pytest.mark.parametrize("name", ["mpnet", "squeezebert", "xlnet", "mobilebert", "funnel", "bert", "gpt2"])
def test_gradient_checkpointing_where_a_family_has_it(tmp_path: Path, name: str) -> None:
    family, data = FAMILIES[name], write_texts(tmp_path / "data", SHORT)
    model = family.build()
    config = config_for(family, family.save(tmp_path / "model"), data, **CHECKPOINTING)
    if model.supports_gradient_checkpointing:
        works(config, tmp_path / "run")
    else:
        none = f"this model ({model.config.model_type}) has none; leave it out"
        refused(config, tmp_path / "run", f"training.gradient_checkpointing: {none}")


def test_half_a_surrogate_pair_is_refused_with_its_row(tmp_path: Path) -> None:
    family, data = FAMILIES["bert"], write_texts(tmp_path / "data", SHORT)
    file = data / "train.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = json.dumps({"text": "so happy \ud83d", "other": "w1", "label": "pos"})
    file.write_text("\n".join(lines) + "\n")
    config = config_for(family, family.save(tmp_path / "model"), data)
    refused(config, tmp_path / "run", "train.jsonl: row 3, column 'text'", "surrogate")
    assert "happy" not in wrong(config)[0].detail


# ---------------------------------------------------------------- config.json of any content

BROKEN = {
    "bert": [
        {"hidden_act": "gelux"},
        {"num_attention_heads": 3},
        {"hidden_size": "wide"},
        {"vocab_size": -1},
        {"num_hidden_layers": 0},
        {"max_position_embeddings": 0},
        {"layer_norm_eps": "tiny"},
        {"problem_type": "a new one"},
        {"pad_token_id": "last"},
        {"type_vocab_size": -3},
        {"chunk_size_feed_forward": 5},
    ],
    "llama": [
        {"rope_parameters": {"rope_type": "a new one"}},
        {"num_key_value_heads": 3},
        {"hidden_act": None},
        {"rms_norm_eps": "tiny"},
        {"initializer_range": "wide"},
        {"attention_dropout": 7},
        {"vocab_size": None},
        {"max_position_embeddings": "many"},
        {"pad_token_id": [1]},
        {"dtype": "float99"},
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name in BROKEN for one in BROKEN[name]])
def test_a_broken_config_is_a_finding_and_never_a_crash(
    tmp_path: Path, name: str, content: dict[str, Any]
) -> None:
    family, data = FAMILIES[name], write_texts(tmp_path / "data", SHORT)
    file = family.save(tmp_path / "model") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    config = config_for(family, tmp_path / "model", data)
    findings, error = wrong(config), error_of_a_step(config, tmp_path / "run")
    assert bool(findings) == (error is not None)
    assert error is None or (isinstance(error, InputError) and str(error) == findings[0].detail), error
    assert len(findings) < 2
    assert not any("Traceback" in f.detail or "defect" in f.detail for f in findings)


# ---------------------------------------------------------------- stages


def looks(
    result: Any = None, error: Exception | None = None
) -> Callable[..., tuple[Any, list[tuple[str, str]]]]:
    def look(config: RunConfig, *results: Any) -> tuple[Any, list[tuple[str, str]]]:
        if error is not None:
            raise error
        return result, [("seen", f"{len(results)} results")]

    return look


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("data.train: no such file"), "data.train: no such file"),
        (KeyError("Mrs Smith, 42"), "a defect of fedsb (KeyError); add --debug to see where, and report it"),
        (ZeroDivisionError("division by zero"), "a defect of fedsb (ZeroDivisionError)"),
    ],
)
def test_a_stage_that_fails_is_a_finding_and_what_needs_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, said: str
) -> None:
    stages = (
        Stage("one", (), looks()),
        Stage("two", ("one",), looks(error=error)),
        Stage("three", ("two",), looks()),
        Stage("four", ("one", "three"), looks()),
        Stage("five", ("one",), looks()),
    )
    monkeypatch.setattr(doctor_module, "STAGES", stages)
    config = config_for(FAMILIES["bert"], tmp_path, tmp_path)
    findings = list(examine(config))[3:]
    assert [(f.what, f.ok) for f in findings] == [
        ("seen", True),
        ("two", False),
        ("three", None),
        ("four", None),
        ("seen", True),
    ]
    assert findings[1].detail.startswith(said)
    assert "Smith" not in findings[1].detail
    assert findings[2].detail == "not checked, since it needs two"


def test_the_tokenizer_of_bytes_has_no_half_characters(tmp_path: Path) -> None:
    """A tokenizer of another kind on the same model: ids beyond the model's are found by the data."""
    family, data = FAMILIES["llama"], write_texts(tmp_path / "data", SHORT)
    family.save(tmp_path / "model")
    save_byte_tokenizer(tmp_path / "model")
    config = config_for(family, tmp_path / "model", data)
    refused(config, tmp_path / "run", "model.path", "has 259 tokens, the model embeddings for 28")
