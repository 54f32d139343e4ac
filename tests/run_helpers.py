"""Tiny inputs for whole runs: models of two layers, data whose label one word decides, configs, commands."""

import json
import os
import random
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

FILLERS = [f"w{i}" for i in range(16)]
KEYS = {"good": "pos", "bad": "neg", "dull": "flat"}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, *FILLERS, *KEYS, *KEYS.values(), "say", ":"]
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

Config = dict[str, Any]


# Models


def save_tokenizer(folder: Path, *, causal: bool = False) -> None:
    """One word, one token. Encoders get [CLS] and [SEP]; decoders end with [SEP]."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if causal:
        names = {"eos_token": "[SEP]", "unk_token": "[UNK]", "bos_token": "[CLS]"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    else:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=inputs, **NAMES)
    tokenizer.save_pretrained(folder)


def tiny_bert(folder: Path) -> Path:
    """Its words outweigh their places, so that a linear head can find the key word."""
    torch.manual_seed(8)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=64, initializer_range=0.1, pad_token_id=0, **size
    )
    model = BertModel(config)
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.mul_(0.1)
        model.embeddings.token_type_embeddings.weight.mul_(0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def tiny_llama(folder: Path) -> Path:
    """With grouped queries: k_proj and v_proj are 16 x 32."""
    torch.manual_seed(7)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(WORDS),
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **size,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, causal=True)
    return folder


def tiny_gpt2(folder: Path) -> Path:
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=3,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, causal=True)
    return folder


# Data


def rows(number: int, *, seed: int) -> list[dict[str, Any]]:
    """text -> label, score and answer are decided by the one key word in the text; site is a column of 4."""
    rng = random.Random(seed)
    made = []
    for i in range(number):
        key = list(KEYS)[i % 3]
        words = [*rng.choices(FILLERS, k=rng.randint(1, 4)), key]
        rng.shuffle(words)
        score = list(KEYS).index(key) + 0.25
        made.append(
            {
                "text": " ".join(words),
                "key": key,
                "label": KEYS[key],
                "score": score,
                "site": f"s{i % 4}",
            }
        )
    return made


def write_rows(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def write_data(folder: Path, *, train: int = 90, test: int = 30) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", rows(train, seed=1))
    write_rows(folder / "test.jsonl", rows(test, seed=2))


# Configs


def classification_config(model: Path, data: Path, **changes: Any) -> Config:
    base = {
        "model": {"path": str(model), "check_memory": False},  # a seventh of a tiny run; test_memory has it
        "task": {"kind": "classification", "text": ["text"], "label": "label"},
        "data": {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl")},
        "method": {"rank": 4, "init": {"samples": 48, "head_warmup": {"rounds": 1, "steps": 5}}},
        "federation": {"clients": 3, "rounds": 3},
        "training": {"learning_rate": 0.02, "batch_size": 10, "max_length": 32},
    }
    return changed(base, **changes)


def causal_config(model: Path, data: Path, **changes: Any) -> Config:
    base = classification_config(model, data)
    base["task"] = {"kind": "causal-lm", "prompt": "say {key} :", "response": "label", "max_new_tokens": 3}
    base["evaluation"] = {"generate": 6}
    base["federation"] = {"clients": 2, "rounds": 2}
    return changed(base, **changes)


def changed(config: Config, **changes: Any) -> Config:
    """A copy with `section__key=value` set; a value of ... removes the key."""
    config = deepcopy(config)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        section = config
        for name in parents:
            section = section.setdefault(name, {})
        if value is ...:
            section.pop(leaf, None)
        else:
            section[leaf] = value
    return config


def write_config(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


# What a run leaves


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its wall-clock times."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics_of(run)]


def parts_of(run: Path) -> list[list[int]]:
    """Which examples each client of a simulated run has; those of a private run are in its private folder."""
    kept = run / "private" / "partition.json"
    file = kept if kept.exists() else run / "partition.json"
    return list(json.loads(file.read_text())["clients"].values())


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under the folder, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Commands


def environment(**more: str) -> dict[str, str]:
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb", "COLUMNS": "200"}
    return {**os.environ, **quiet, **more}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedsb", *map(str, arguments)]


def shell(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """`fedsb ARGUMENTS` in a process of its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=cwd, env=environment(**env), timeout=300
    )


def python(script: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=300,
    )


def main_status(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """`fedsb ARGUMENTS` in this process: the exit status. Read what it printed with capsys."""
    from fedsb.cli import main

    monkeypatch.setattr(sys, "argv", ["fedsb", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
