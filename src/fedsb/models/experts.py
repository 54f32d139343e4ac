"""Experts from elsewhere: plain PEFT LoRA folders over one base, read, checked, brought over shared bases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from fedsb.adapter.cores import SharedCores, cores_from_pairs
from fedsb.adapter.layer import LoraPair
from fedsb.errors import InputError
from fedsb.models.head import head_parameters, is_classifier
from fedsb.models.peft_folder import check_fits, read_adapter

FILES = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
"""Of a repository on the hub, all that is fetched."""


class Expert(NamedTuple):
    """One folder: its LoRA of each layer, and which modules it holds whole besides."""

    folder: Path
    pairs: dict[str, LoraPair]
    whole_modules: frozenset[str]


def read_experts(folders: Mapping[str, str]) -> dict[str, Expert]:
    """The experts by name, from PEFT folders here or repositories on the hub.

    Raises:
        InputError: the first folder that is not there or is no plain LoRA adapter.
    """
    return {name: _expert(name, source) for name, source in folders.items()}


def _expert(name: str, source: str) -> Expert:
    try:
        folder = _folder(source)
        _, pairs, others = read_adapter(folder)
    except InputError as error:
        raise InputError(f"method.experts.folders.{name}: {error}") from None
    return Expert(folder, pairs, frozenset(other.split(".", 1)[0] for other in others))


def _folder(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(f"expected a PEFT adapter folder or the name of one on the hub, found {source!r}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(f"{source!r} is no folder here, and the hub gives none: {reason}") from error


def check_experts(experts: Mapping[str, Expert], model: nn.Module) -> None:
    """Refuse experts that were made for another model, or that hold more than LoRA and a classification head.
    A head is left out: the run trains one for its own classes.

    Raises:
        InputError: the expert, what does not fit and what to do.
    """
    head = {name.split(".", 1)[0] for name in head_parameters(model)} if is_classifier(model) else set()
    for name, expert in experts.items():
        if more := sorted(expert.whole_modules - head):
            raise InputError(
                f"method.experts.folders.{name}: {expert.folder} holds {', '.join(more)[:200]} whole "
                "(modules_to_save), which no expert can share; train it again without"
            )
        try:
            check_fits(expert.folder, model)
        except InputError as error:
            raise InputError(f"method.experts.folders.{name}: {error}") from None


def layers_of(experts: Mapping[str, Expert], model: nn.Module) -> dict[str, nn.Module]:
    """The layers that any of them adapts, in the model's order."""
    adapted = {layer for expert in experts.values() for layer in expert.pairs}
    return {name: module for name, module in model.named_modules() if name in adapted}


def shared_cores(experts: Mapping[str, Expert], rank: int) -> dict[str, SharedCores]:
    """By layer: shared bases, and a core of each expert, zero where it does not adapt the layer."""
    layers = dict.fromkeys(layer for expert in experts.values() for layer in expert.pairs)
    return {
        layer: cores_from_pairs([expert.pairs.get(layer) for expert in experts.values()], rank)
        for layer in layers
    }
