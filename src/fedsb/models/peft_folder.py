"""A standard PEFT LoRA folder: written from folded layers, read back, padded to a higher rank.

peft alone can load it. A trained head is stored as peft stores `modules_to_save`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.adapter import LoraPair
from fedsb.adapter.linear import features, is_linear
from fedsb.common.files import write_bytes, write_json
from fedsb.errors import InputError
from fedsb.models.digest import layer_digest
from fedsb.models.peft_checks import (
    CONFIG,
    PREFIX,
    adapted_layers,
    arguments_for_peft,
    read_config,
    read_tensors,
    scale_of,
)
from fedsb.models.peft_weights import WEIGHTS, metadata_of, safetensors_bytes, weights_file

BASE_WEIGHTS = "fedsb_base_weights"
"""Where the weights' file says of its base what `layer_digest` said; peft does not look at it."""
LOST = 1e-6
"""Share of a layer's update, in Frobenius norm, that a lower rank may leave out: fp32's digits."""


def write_adapter(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    *,
    base_model: str,
    task_type: str | None,
    base_weights: str | None = None,
    fan_in_fan_out: bool = False,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the folder. r is the largest rank among the pairs, others are padded; alpha = r, so scale 1.

    Args:
        base_model: what `base_model_name_or_path` says.
        task_type: of `TASK_TYPES`.
        base_weights: `layer_digest` of the adapted layers; None where nobody knows.
        fan_in_fan_out: True over GPT-2's Conv1D.
        head: trained parameters outside the base, by name in the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = head or {}
    tensors = {f"{PREFIX}{name}": value for name, value in head.items()}
    rank = max(pair.A.shape[0] for pair in pairs.values())
    for layer, pair in ((layer, at_rank(pair, rank)) for layer, pair in pairs.items()):
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = pair.A
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = pair.B
    config = _lora_config(list(pairs), rank, base_model, task_type, fan_in_fan_out, head)
    metadata = {"format": "pt"} | ({BASE_WEIGHTS: base_weights} if base_weights else {})
    write_bytes(folder / WEIGHTS, safetensors_bytes(tensors, metadata))
    write_json(folder / CONFIG, config)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, LoraPair], dict[str, Tensor]]:
    """(peft config, LoRA pairs in fp32 with their scales in B, other tensors such as a head).

    Raises:
        InputError: no plain LoRA adapter there, or it cannot be read.
    """
    config = read_config(folder)
    tensors = read_tensors(folder, config, plain=True)
    pairs = {layer: _pair(config, tensors, layer) for layer in adapted_layers(tensors)}
    return config, pairs, {name: value for name, value in tensors.items() if ".lora_" not in name}


def _pair(config: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: str) -> LoraPair:
    A, B = (tensors[f"{layer}.lora_{part}.weight"].float() for part in "AB")
    return LoraPair(scale_of(config, layer) * B, A)


def put_on(model: nn.Module, folder: Path) -> nn.Module:
    """The model in eval mode with the adapter on it, by peft.

    Raises:
        InputError: the adapter is damaged, of another model, or of a kind that is not read.
    """
    from peft import PeftConfig, PeftModel

    config = read_config(folder)
    tensors = read_tensors(folder, config)
    if config["peft_type"] == "LORA":
        _check_lora_layers(folder, model, config, tensors)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            peft_config = PeftConfig.from_peft_type(**arguments_for_peft(config, tensors))
            adapted: nn.Module = PeftModel.from_pretrained(model, folder, config=peft_config).eval()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{folder} cannot be put on this model: {reason[:300]}") from error
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise InputError(f"{folder}: {WEIGHTS} lacks tensors that {CONFIG} asks for; write the adapter again")
    return adapted


def base_weights_of(folder: Path) -> str | None:
    """What the folder says of its base's weights, if anything: those of peft do not."""
    return metadata_of(weights_file(folder)).get(BASE_WEIGHTS)


def check_fits(folder: Path, model: nn.Module) -> None:
    """Refuse a LoRA folder that was made for another model.

    Raises:
        InputError: as `check_layers`.
    """
    config = read_config(folder)
    _check_lora_layers(folder, model, config, read_tensors(folder, config))


def _check_lora_layers(
    folder: Path, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    A, B = ({n: tensors.get(f"{n}.lora_{part}.weight") for n in adapted_layers(tensors)} for part in "AB")
    shapes = {n: (b.shape[0], a.shape[1]) for n, b in B.items() if b is not None and (a := A[n]) is not None}
    made_for = str(config.get("base_model_name_or_path"))
    check_layers(folder, model, shapes, made_for=made_for, base_weights=base_weights_of(folder))


def check_layers(
    folder: Path,
    model: nn.Module,
    shapes: Mapping[str, tuple[int, int]],
    *,
    made_for: str,
    base_weights: str | None,
) -> None:
    """Refuse what was made for layers of another model.

    Args:
        shapes: (out, in) of each layer by name.
        made_for: the model that it names.
        base_weights: what `layer_digest` said of these layers; None where nobody knows.

    Raises:
        InputError: a layer is missing, has another shape, or has the same dtype and other numbers than the
            one that was trained on; the message names the model it was made for.
    """
    made_for = made_for[:200]
    modules = {n: m for n, m in model.named_modules(remove_duplicate=False) if is_linear(m)}
    for name, shape in shapes.items():
        here = features(modules[name]) if name in modules else None
        if here != shape:
            layer_here = "no such layer" if here is None else f"{here[0]} x {here[1]}"
            raise InputError(
                f"{folder}: this adapter was made for another model ({made_for}): layer {name!r} is "
                f"{shape[0]} x {shape[1]} in it, and the model here has {layer_here}"
            )
    here_now = layer_digest({name: modules[name] for name in shapes})
    if base_weights and here_now and _other_numbers(base_weights, here_now):
        raise InputError(
            f"{folder}: this adapter was trained on other weights ({made_for}) than the model here has, in "
            "layers of the same shapes; name the model that it was trained on"
        )


def _other_numbers(*digests: str) -> bool:
    """Whether two digests of the same dtype differ; of different dtypes, nobody knows."""
    (dtype, _, digits), (other_dtype, _, other_digits) = (digest.partition(":") for digest in digests)
    return dtype == other_dtype and digits != other_digits


def at_rank(pair: LoraPair, rank: int) -> LoraPair:
    """The same update at another rank: padded with zeros, or refactored where its own rank is lower than k.

    Raises:
        InputError: the rank is lower than the update's.
    """
    k = pair.A.shape[0]
    if rank < k:
        return _refactored(pair, rank)
    B = torch.nn.functional.pad(pair.B, (0, rank - k))
    A = torch.nn.functional.pad(pair.A, (0, 0, 0, rank - k))
    return LoraPair(B, A)


def _refactored(pair: LoraPair, rank: int) -> LoraPair:
    """The leading part of the SVD of B A, from the factors' QR so that the whole is never formed."""
    k = pair.A.shape[0]
    Q_B, R_B = torch.linalg.qr(pair.B.double())
    Q_A, R_A = torch.linalg.qr(pair.A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
    lost = float(S[rank:].norm() / S.norm().clamp(min=1e-300))
    if lost > LOST:
        raise InputError(
            f"--rank: the adapter has rank {k} and {rank} would lose part of it ({lost:.2g} of a layer's "
            f"norm); give {k} or more"
        )
    root = S[:rank].sqrt()
    return LoraPair((Q_B @ U[:, :rank] * root).float(), (root[:, None] * (Vh[:rank] @ Q_A.T)).float())


def _lora_config(
    layers: list[str],
    rank: int,
    base_model: str,
    task_type: str | None,
    fan_in_fan_out: bool,
    head: Iterable[str],
) -> dict[str, Any]:
    from peft import LoraConfig

    modules = sorted({name.split(".", 1)[0] for name in head})
    config = LoraConfig(
        task_type=task_type,
        base_model_name_or_path=base_model,
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=layers,
        modules_to_save=modules or None,
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
        bias="none",
    ).to_dict()
    return {  # sets and enums are no JSON values
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in config.items()
    }
