"""Out of the run: a standard PEFT LoRA folder at a wished rank, or merged weights. Checked before done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.adapter import Attached, Factors, LoraPair, attach, merge
from fedsb.adapter_folder import at_rank, read_adapter, write_adapter
from fedsb.config import RunConfig
from fedsb.errors import InputError, RunFailed
from fedsb.models import load_base, load_tokenizer
from fedsb.run_folder import check_place

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of merged and adapted logits, relative to the largest logit, by the base's dtype."""


def export_lora(run: Path, out: Path, *, rank: int | None = None) -> None:
    """Write the run's adapter as a PEFT LoRA folder of rank `rank` (default: the run's), then read it back.

    Raises:
        InputError: the run is not finished, `out` is taken, or the rank would lose part of the adapter.
        RunFailed: what was written differs from what was meant.
    """
    config, pairs, head = read_adapter(_finished(run) / "adapter")
    padded = {name: at_rank(pair, rank or pair.A.shape[0]) for name, pair in pairs.items()}
    part = _part(out)
    write_adapter(
        part,
        padded,
        base_model=config["base_model_name_or_path"],
        causal=config["task_type"] == "CAUSAL_LM",
        fan_in_fan_out=config["fan_in_fan_out"],
        head=head,
    )
    _, again, _ = read_adapter(part)
    worst = max(float((again[n].B @ again[n].A - p.B @ p.A).abs().max()) for n, p in pairs.items())
    if not worst < 1e-5:
        shutil.rmtree(part)
        raise RunFailed(
            f"export: the written adapter differs from the run's by {worst:.2g}; nothing was kept"
        )
    part.rename(out)


def export_merged(run: Path, out: Path) -> None:
    """Write base model + adapter as one model folder with tokenizer, then load it and compare logits.

    Raises:
        InputError: the run is not finished, or `out` is taken.
        RunFailed: the reloaded model's logits differ.
    """
    config = RunConfig.from_yaml(_finished(run) / "config.yaml")
    part = _part(out)
    model, tokenizer = _adapted(run, config)
    probe = _probe(model)
    expected = _logits(model.model, probe)
    merged: Any = merge(model)
    merged.save_pretrained(part)
    tokenizer.save_pretrained(part)
    again = load_base(str(part), tokenizer=tokenizer, num_labels=_num_labels(run), dtype=config.model.dtype)
    worst = float((_logits(again, probe) - expected).abs().max() / expected.abs().max())
    if not worst < TOLERANCE[config.model.dtype]:
        shutil.rmtree(part)
        raise RunFailed(
            f"export: logits of the merged model differ by {worst:.2g} of the largest; nothing was kept"
        )
    part.rename(out)


def _adapted(run: Path, config: RunConfig) -> tuple[Attached, Any]:
    """The base model with the run's adapter and head on it."""
    summary = json.loads((run / "summary.json").read_text())
    tokenizer = load_tokenizer(config.model.path)
    model = load_base(
        config.model.path,
        tokenizer=tokenizer,
        num_labels=_num_labels(run),
        label_names=summary["label_names"],
        dtype=config.model.dtype,
    )
    _, pairs, head = read_adapter(run / "adapter")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in head.items():
            parameters[name].copy_(value)
    return attach(model, {n: _factors(pair) for n, pair in pairs.items()}, trains=()), tokenizer


def _factors(pair: LoraPair) -> Factors:
    return Factors(B=pair.B, A=pair.A, R=None)


def _num_labels(run: Path) -> int | None:
    """As the task says: None for a causal LM, 1 for regression."""
    config = RunConfig.from_yaml(run / "config.yaml")
    if config.task.kind == "causal-lm":
        return None
    names = json.loads((run / "summary.json").read_text())["label_names"]
    return len(names) if names else 1


def _probe(attached: Attached) -> Tensor:
    vocabulary = int(attached.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    return torch.arange(4 * 16).reshape(4, 16) * 7919 % vocabulary


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def _finished(run: Path) -> Path:
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}: not a run folder (no config.yaml)")
    if not (run / "summary.json").is_file():
        raise InputError(f"{run}: this run is not finished; go on with it: fedsb run --out {run} --resume")
    return run


def _part(out: Path) -> Path:
    """A fresh folder beside `out`, to be renamed when all is well."""
    if out.exists():
        raise InputError(f"--out: {out} exists already; name a new folder")
    check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    return part
