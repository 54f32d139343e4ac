"""Experts from elsewhere: plain PEFT LoRA folders over one base, read, checked, brought over shared bases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import nn

from fedsb.adapter.cores import SharedCores, cores_from_pairs, full_rank
from fedsb.adapter.layer import LoraPair
from fedsb.errors import InputError
from fedsb.models.head import head_parameters, is_classifier
from fedsb.models.peft_checks import check_plain, read_config
from fedsb.models.peft_folder import check_fits, read_adapter

FILES = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
"""All that is fetched of a repository on the hub."""


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


def check_folders(folders: Mapping[str, str]) -> None:
    """Refuse by their configs alone folders that `read_experts` would refuse.

    Raises:
        InputError: as `read_experts`.
    """
    for name, source in folders.items():
        with _named(name):
            folder = _folder(source)
            check_plain(folder, read_config(folder), ())


def _expert(name: str, source: str) -> Expert:
    with _named(name):
        folder = _folder(source)
        _, pairs, others = read_adapter(folder)
    return Expert(folder, pairs, frozenset(other.split(".", 1)[0] for other in others))


@contextmanager
def _named(expert: str) -> Iterator[None]:
    """An error in here says whose it is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"method.experts.folders.{expert}: {error}") from None


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
        with _named(name):
            if more := sorted(expert.whole_modules - head):
                raise InputError(
                    f"{expert.folder}: modules_to_save has {', '.join(more)[:200]} whole, which experts "
                    "cannot share; train it again without"
                )
            check_fits(expert.folder, model)


def layers_of(experts: Mapping[str, Expert], model: nn.Module) -> dict[str, nn.Module]:
    """The layers that any of them adapts, in the model's order."""
    adapted = {layer for expert in experts.values() for layer in expert.pairs}
    return {name: module for name, module in model.named_modules() if name in adapted}


def shared_cores(experts: Mapping[str, Expert], rank: int) -> dict[str, SharedCores]:
    """By layer: shared bases, and a core of each expert, zero where it does not adapt the layer."""
    return {layer: cores_from_pairs(pairs, rank) for layer, pairs in _by_layer(experts).items()}


def rank_needed(experts: Mapping[str, Expert]) -> int:
    """The rank at which no layer loses anything."""
    return max(map(full_rank, _by_layer(experts).values()))


def _by_layer(experts: Mapping[str, Expert]) -> dict[str, Sequence[LoraPair | None]]:
    """Layer -> each expert's LoRA of it, None where it has none."""
    layers = dict.fromkeys(layer for expert in experts.values() for layer in expert.pairs)
    return {layer: [expert.pairs.get(layer) for expert in experts.values()] for layer in layers}
