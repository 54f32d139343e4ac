"""Out of the run: standard PEFT LoRA folders at a wished rank, or merged weights. Checked before done."""

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
from fedsb.common.files import read_json, write_bytes, write_json, write_text
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.errors import InputError, RunFailed
from fedsb.models import load_base, load_preprocessor
from fedsb.models.blank import blank_inputs
from fedsb.models.limits import text_config
from fedsb.models.load import quiet_loading
from fedsb.models.mixture_folder import is_mixture, read_mixture
from fedsb.models.peft_folder import at_rank, check_fits, put_on, write_adapter
from fedsb.models.peft_weights import safetensors_bytes
from fedsb.models.public_name import public_name
from fedsb.runner.chosen_lora import ADAPTER, MEAN, MIXTURE, ChosenLora, chosen_lora, folder_names
from fedsb.runner.client_lora import client_lora
from fedsb.runner.exported_config import Merged, describe, load_as_written, lost_share, with_template
from fedsb.runner.folder import check_place
from fedsb.runner.model_card import experts_card, model_card
from fedsb.runner.moved_base import check_same_base, with_base
from fedsb.runner.vllm import check_servable as check_vllm
from fedsb.runner.vllm import serving_rank

Server = Literal["vllm"]
GATE = "gate.safetensors"

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of exported and adapted logits, relative to the largest logit, by the dtype of what is
written. It bounds the arithmetic; merged weights are compared bit by bit, and their rounding is stated."""


@stage("export", "writing or reading a folder", "check the run, its base model and the space on disk")
def export_lora(
    run: Path,
    out: Path,
    *,
    rank: int | None = None,
    server: Server | None = None,
    expert: str | None = None,
    client: str | None = None,
    base: str | None = None,
) -> int:
    """Write the run's adapter as a PEFT LoRA folder with a model card; its rank.

    The written folder is put on the base model by peft, and its logits are compared with the run's.

    Args:
        rank: any that holds the whole update; default the run's, or with `server` the next it accepts.
        server: "vllm": refuse what vLLM would.
        expert: of a mixture which, or their mean; see `chosen_lora`.
        client: whose model, of a run in which something stays with each; see `client_lora`.
        base: where the base model is now, if it was moved.

    Raises:
        InputError: the run is not finished, `out` is taken, its base is another model now, the rank would
            lose part of the adapter, the server would refuse it, or `expert` does not fit the run.
        RunFailed: what was written differs from what was meant.
    """
    config = _config_of(run, base)
    lora = _lora(run, config, expert, client)
    rank = _rank_for(server, lora.peft_config, rank)
    with _new_folder(out) as part:
        model, _ = _base(run, config)
        _write_checked(part, lora, rank, model, config)
        write_text(part / "README.md", model_card(run, rank=rank, expert=expert, client=client))
    return rank


@stage("export", "writing or reading a folder", "check the run, its base model and the space on disk")
def export_experts(
    run: Path, out: Path, *, rank: int | None = None, server: Server | None = None, base: str | None = None
) -> dict[str, str]:
    """Write every expert of a run's mixture as a PEFT LoRA folder, as `export_lora` does; expert -> folder.

    Beside them experts.json, which expert lies where, and of a mixture with route: request its gate.

    Raises:
        InputError: as `export_lora`, or the run has no mixture.
    """
    config = _config_of(run, base)
    if not is_mixture(run / MIXTURE):
        raise InputError(f"--format experts: {run} has one adapter and no mixture; take --format lora")
    mixture = read_mixture(run / MIXTURE).mixture
    names = folder_names(mixture.experts)
    rank = _rank_for(server, chosen_lora(run, MEAN).peft_config, rank)
    with _new_folder(out) as part:
        model, _ = _base(run, config)
        for name, folder in names.items():
            model = _write_checked(part / folder, chosen_lora(run, name), rank, model, config)
        write_json(part / "experts.json", {"route": mixture.route, "experts": names})
        if mixture.gate is not None:
            write_bytes(part / GATE, safetensors_bytes({"gate": mixture.gate}, {"format": "pt"}))
        write_text(part / "README.md", experts_card(run, names, rank=rank))
    return names


def _lora(run: Path, config: RunConfig, expert: str | None, client: str | None) -> ChosenLora:
    lora = chosen_lora(run, expert)
    return lora if client is None else client_lora(run, config, client, lora)


def _write_checked(
    folder: Path, lora: ChosenLora, rank: int, base: nn.Module, config: RunConfig
) -> nn.Module:
    """Write the LoRA and compare logits; the base without it again."""
    adapted = _put_on(base, lora)
    expected = _logits(adapted.model)
    base = detach(adapted)
    write_adapter(
        folder,
        {name: at_rank(pair, rank) for name, pair in lora.pairs.items()},
        base_model=public_name(lora.peft_config["base_model_name_or_path"]),
        task_type=lora.peft_config["task_type"],
        base_weights=lora.base_weights,
        fan_in_fan_out=lora.peft_config["fan_in_fan_out"],
        head=lora.head,
    )
    with_peft: Any = _with_peft(base, lora.head, folder)
    _check(_logits(with_peft), expected, config.model.dtype)
    unloaded: nn.Module = with_peft.unload()
    return unloaded


def _rank_for(server: Server | None, peft_config: dict[str, Any], rank: int | None) -> int:
    adapter_rank = int(peft_config["r"])
    if server is None:
        return rank or adapter_rank
    check_vllm(peft_config, rank)
    return rank or serving_rank(adapter_rank)


@stage("export", "writing or reading a folder", "check the run, its base model and the space on disk")
def export_merged(
    run: Path,
    out: Path,
    *,
    expert: str | None = None,
    client: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
) -> Merged:
    """Write base model + adapter as one model folder with tokenizer and model card. Loaded as its own config
    says it has the weights that were written, and the run's logits; the card says what rounding cost.

    Args:
        expert: of a mixture which, or their mean; see `chosen_lora`.
        client: whose model, of a run in which something stays with each; see `client_lora`.
        base: where the base model is now, if it was moved.
        dtype: of the written weights; default the run's.

    Raises:
        InputError: the run is not finished, `out` is taken, its base is another model now, or `expert` does
            not fit the run.
        RunFailed: what was written differs from what was meant.
    """
    config = _config_of(run, base)
    lora, dtype = _lora(run, config, expert, client), dtype or config.model.dtype
    with _new_folder(out) as part:
        model, tokenizer = _base(run, config)
        adapted = _put_on(model.float() if dtype != config.model.dtype else model, lora)
        expected = _logits(adapted.model)
        lost = lost_share(adapted, getattr(torch, dtype))
        merged: Any = merge(adapted)
        longest, ends = getattr(config.task, "max_new_tokens", None), with_template(config, tokenizer)
        several = config.task.multi_label
        describe(merged, tokenizer, getattr(torch, dtype), longest=longest, ends=ends, multi_label=several)
        with quiet_loading():
            merged.save_pretrained(part)
        tokenizer.save_pretrained(part)
        difference = _check(_logits(load_as_written(part, merged)), expected, dtype)
        result = Merged(dtype, lost, difference)
        card = model_card(run, rank=None, merged=str(result), expert=expert, client=client)
        write_text(part / "README.md", card)
    return result


def _check(logits: Tensor, expected: Tensor, dtype: str) -> float:
    """The largest difference, relative to the largest logit."""
    worst = float((logits - expected).abs().max() / expected.abs().max())
    if not worst < TOLERANCE[dtype]:
        raise RunFailed(
            f"export: logits of what was written differ by {worst:.2g} of the largest; nothing was kept"
        )
    return worst


def _with_peft(model: nn.Module, head: dict[str, Tensor], folder: Path) -> nn.Module:
    """The folder put on the model by peft; the head must come from there too."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in head:
            parameters[name].zero_()
    return put_on(model, folder)


def _base(run: Path, config: RunConfig) -> tuple[nn.Module, Any]:
    """The base model of the run and its tokenizer.

    Raises:
        InputError: it is another model now.
    """
    summary = read_json(run / "summary.json")
    tokenizer = load_preprocessor(config.model.path, config.task.model_class)
    model = load_base(
        config.model.path,
        tokenizer=tokenizer,
        num_labels=_num_labels(run, config),
        label_names=summary.get("label_names"),
        model_class=config.task.model_class,
        multi_label=config.task.multi_label,
        dtype=config.model.dtype,
        seed=config.seed,
    )
    check_fits(run / ADAPTER, model)
    check_same_base(run, config, model)
    return model, tokenizer


def _put_on(model: nn.Module, lora: ChosenLora) -> Attached:
    """The LoRA and its head on the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in lora.head.items():
            parameters[name].copy_(value)
    factors = {name: Factors(B=pair.B, A=pair.A, R=None) for name, pair in lora.pairs.items()}
    return attach(model, factors, trains=())


def _num_labels(run: Path, config: RunConfig) -> int | None:
    """As the task says: None for a causal LM, 1 for regression."""
    if not config.task.classifies:
        return None
    names = read_json(run / "summary.json").get("label_names")
    return len(names) if names else 1


def _logits(model: nn.Module) -> Tensor:
    """The model's logits for four texts of 16 made-up tokens, or four made-up images."""
    inputs = blank_inputs(model, 4, 16, "cpu")
    if (pixels := inputs.get("pixel_values")) is not None:
        filled = {"pixel_values": torch.linspace(-1, 1, pixels.numel()).reshape(pixels.shape).to(pixels)}
    else:
        vocabulary = int(text_config(model.config).vocab_size)
        ids = torch.arange(4 * 16).reshape(4, 16) * 7919 % vocabulary
        filled = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits: Tensor = model(**filled).logits
    return logits.float()


def _config_of(run: Path, base: str | None = None) -> RunConfig:
    """The config of a finished run, its base being at `base` if given."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}: not a run folder (no config.yaml)")
    if not (run / "summary.json").is_file():
        raise InputError(f"{run}: this run is not finished; resume it: fedsb run --out {run} --resume")
    return with_base(RunConfig.from_yaml(run / "config.yaml"), base, "--base PATH")


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
