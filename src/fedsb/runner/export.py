"""Out of the run: a standard PEFT LoRA folder at a wished rank, or merged weights. Checked before done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.attached import Attached, attach, detach, merge
from fedsb.common.files import read_json, write_text
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.errors import InputError, RunFailed
from fedsb.models import load_base, load_tokenizer
from fedsb.models.peft_folder import at_rank, base_weights_of, check_fits, put_on, read_adapter, write_adapter
from fedsb.runner.folder import check_place
from fedsb.runner.model_card import model_card
from fedsb.runner.vllm import check_servable as check_vllm
from fedsb.runner.vllm import serving_rank

Server = Literal["vllm"]

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of merged and adapted logits, relative to the largest logit, by the base's dtype."""


@stage("export", "writing or reading a folder", "check the run, its base model and the space on disk")
def export_lora(run: Path, out: Path, *, rank: int | None = None, server: Server | None = None) -> int:
    """Write the run's adapter as a PEFT LoRA folder with a model card; its rank.

    The written folder is put on the base model by peft, and its logits are compared with the run's.

    Args:
        rank: any that holds the whole update; default the run's, or with `server` the next it accepts.
        server: "vllm": refuse what vLLM would.

    Raises:
        InputError: the run is not finished, `out` is taken, its base is another model now, the rank would
            lose part of the adapter, or the server would refuse it.
        RunFailed: what was written differs from what was meant.
    """
    config = _config_of(run)
    peft_config, pairs, head = read_adapter(run / "adapter")
    rank = _rank_for(server, peft_config, rank)
    padded = {name: at_rank(pair, rank) for name, pair in pairs.items()}
    with _new_folder(out) as part:
        adapted, _ = _adapted(run, config)
        expected = _logits(adapted.model)
        model = detach(adapted)
        write_adapter(
            part,
            padded,
            base_model=peft_config["base_model_name_or_path"],
            causal=peft_config["task_type"] == "CAUSAL_LM",
            base_weights=base_weights_of(run / "adapter"),
            fan_in_fan_out=peft_config["fan_in_fan_out"],
            head=head,
        )
        _check(_logits(_with_peft(model, head, part)), expected, config)
        write_text(part / "README.md", model_card(run, rank=rank))
    return rank


def _rank_for(server: Server | None, peft_config: dict[str, Any], rank: int | None) -> int:
    adapter_rank = int(peft_config["r"])
    if server is None:
        return rank or adapter_rank
    check_vllm(peft_config, rank)
    return rank or serving_rank(adapter_rank)


@stage("export", "writing or reading a folder", "check the run, its base model and the space on disk")
def export_merged(run: Path, out: Path) -> None:
    """Write base model + adapter as one model folder with tokenizer and model card, then load it and compare
    logits.

    Raises:
        InputError: the run is not finished, or `out` is taken.
        RunFailed: the reloaded model's logits differ.
    """
    config = _config_of(run)
    with _new_folder(out) as part:
        model, tokenizer = _adapted(run, config)
        expected = _logits(model.model)
        merged: Any = merge(model)
        merged.save_pretrained(part)
        tokenizer.save_pretrained(part)
        num_labels = _num_labels(run, config)
        reloaded = load_base(str(part), tokenizer=tokenizer, num_labels=num_labels, dtype=config.model.dtype)
        _check(_logits(reloaded), expected, config)
        write_text(part / "README.md", model_card(run, rank=None))


def _check(logits: Tensor, expected: Tensor, config: RunConfig) -> None:
    worst = float((logits - expected).abs().max() / expected.abs().max())
    if not worst < TOLERANCE[config.model.dtype]:
        raise RunFailed(
            f"export: logits of what was written differ by {worst:.2g} of the largest; nothing was kept"
        )


def _with_peft(model: nn.Module, head: dict[str, Tensor], folder: Path) -> nn.Module:
    """The folder put on the model by peft; the head must come from there too."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in head:
            parameters[name].zero_()
    return put_on(model, folder)


def _adapted(run: Path, config: RunConfig) -> tuple[Attached, Any]:
    """The base model with the run's adapter and head on it."""
    summary = read_json(run / "summary.json")
    tokenizer = load_tokenizer(config.model.path)
    model = load_base(
        config.model.path,
        tokenizer=tokenizer,
        num_labels=_num_labels(run, config),
        label_names=summary.get("label_names"),
        dtype=config.model.dtype,
    )
    check_fits(run / "adapter", model)
    _, pairs, head = read_adapter(run / "adapter")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in head.items():
            parameters[name].copy_(value)
    factors = {name: Factors(B=pair.B, A=pair.A, R=None) for name, pair in pairs.items()}
    return attach(model, factors, trains=()), tokenizer


def _num_labels(run: Path, config: RunConfig) -> int | None:
    """As the task says: None for a causal LM, 1 for regression."""
    if not config.task.classifies:
        return None
    names = read_json(run / "summary.json").get("label_names")
    return len(names) if names else 1


def _logits(model: nn.Module) -> Tensor:
    """The model's logits for four texts of 16 made-up tokens."""
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = torch.arange(4 * 16).reshape(4, 16) * 7919 % vocabulary
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def _config_of(run: Path) -> RunConfig:
    """The config of a finished run."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}: not a run folder (no config.yaml)")
    if not (run / "summary.json").is_file():
        raise InputError(f"{run}: this run is not finished; resume it: fedsb run --out {run} --resume")
    return RunConfig.from_yaml(run / "config.yaml")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, which takes that name when the block ends, and is gone where it fails."""
    if out.exists():
        raise InputError(f"--out: {out} exists already; name a new folder")
    check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
