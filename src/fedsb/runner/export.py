"""Out of the run: a standard PEFT LoRA folder at a wished rank, or merged weights. Checked before done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors, LoraPair
from fedsb.adapter.attached import Attached, attach, detach, merge
from fedsb.common.files import read_json, write_text
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
    peft_config, pairs, head = read_adapter(_finished(run) / "adapter")
    rank = _rank_for(server, peft_config, rank)
    padded = {name: at_rank(pair, rank) for name, pair in pairs.items()}
    part = _part(out)
    with _removed_on_error(part):
        model, expected = _expected(run)
        write_adapter(
            part,
            padded,
            base_model=peft_config["base_model_name_or_path"],
            causal=peft_config["task_type"] == "CAUSAL_LM",
            base_weights=base_weights_of(run / "adapter"),
            fan_in_fan_out=peft_config["fan_in_fan_out"],
            head=head,
        )
        _check(_logits(_with_peft(model, head, part), _probe(model)), expected, run)
        write_text(part / "README.md", model_card(run, rank=rank))
    part.rename(out)
    return rank


def _rank_for(server: Server | None, peft_config: dict[str, Any], rank: int | None) -> int:
    own = int(peft_config["r"])
    if server is None:
        return rank or own
    check_vllm(peft_config, rank)
    return rank or serving_rank(own)


def export_merged(run: Path, out: Path) -> None:
    """Write base model + adapter as one model folder with tokenizer and model card, then load it and compare
    logits.

    Raises:
        InputError: the run is not finished, or `out` is taken.
        RunFailed: the reloaded model's logits differ.
    """
    config = RunConfig.from_yaml(_finished(run) / "config.yaml")
    part = _part(out)
    with _removed_on_error(part):
        model, tokenizer = _adapted(run, config)
        probe = _probe(model.model)
        expected = _logits(model.model, probe)
        merged: Any = merge(model)
        merged.save_pretrained(part)
        tokenizer.save_pretrained(part)
        again = load_base(
            str(part), tokenizer=tokenizer, num_labels=_num_labels(run), dtype=config.model.dtype
        )
        _check(_logits(again, probe), expected, run)
        write_text(part / "README.md", model_card(run, rank=None))
    part.rename(out)


@contextmanager
def _removed_on_error(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _check(found: Tensor, expected: Tensor, run: Path) -> None:
    worst = float((found - expected).abs().max() / expected.abs().max())
    if not worst < TOLERANCE[RunConfig.from_yaml(run / "config.yaml").model.dtype]:
        raise RunFailed(
            f"export: logits of what was written differ by {worst:.2g} of the largest; nothing was kept"
        )


def _expected(run: Path) -> tuple[nn.Module, Tensor]:
    """The base model without an adapter, and the logits it has with the run's."""
    adapted, _ = _adapted(run, RunConfig.from_yaml(run / "config.yaml"))
    logits = _logits(adapted.model, _probe(adapted.model))
    return detach(adapted), logits


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
        num_labels=_num_labels(run),
        label_names=summary.get("label_names"),
        dtype=config.model.dtype,
    )
    check_fits(run / "adapter", model)
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
    if not config.task.classifies:
        return None
    names = read_json(run / "summary.json").get("label_names")
    return len(names) if names else 1


def _probe(model: nn.Module) -> Tensor:
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
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
