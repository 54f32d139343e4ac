"""An adapter folder that anybody may have written: its config and tensors, or one reason to refuse them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsb.common.files import read_json
from fedsb.errors import InputError
from fedsb.models.peft_weights import WEIGHTS, load_weights, weights_file

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
KINDS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "HRA", "FOURIERFT", "LN_TUNING")
"""Kinds of adapters that are nothing but tensors beside those of layers."""
LARGEST_RANK, LARGEST_ALPHA = 1 << 16, 1e6
LARGEST = 1 << 20
"""Any number in another kind's config."""
OF_LORA = re.compile(
    "peft_type|task_type|base_model_name_or_path|r|lora_alpha|fan_in_fan_out|bias|use_rslora|use_dora|lora_bias|"
    "modules_to_save|rank_pattern|alpha_pattern|init_lora_weights"
)
"""Keys that peft is given of a LoRA config."""
NOT_READ = re.compile(
    "megatron_config|layer_replication|target_parameters|trainable_token_indices|loftq_config|corda_config|"
    "lora_ga_config|use_qalora|alora_invocation_tokens|arrow_config|use_bdlora|velora_config|"
    "monteclora_config|kasa_config"
)
"""Keys that name modules to import, or change the base or the layer."""
START = re.compile(r"gaussian|orthogonal|eva|olora|pissa(_niter_\d\d?)?")
NAME = re.compile(r"[\w.^$-]{0,200}")
"""A name, or a pattern that is as fast as one."""
HAVE_HEADS = ("SEQ_CLS", "TOKEN_CLS")
"""Kinds of tasks for which peft saves a head whole without being told."""
IN_A_PAIR = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight|\.bias)?$")


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, of a kind that can be read.

    Raises:
        InputError: it or the weights are not there, or it is of no such kind, or holds what no adapter has.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no PEFT adapter here: {CONFIG} is missing")
    weights_file(folder)
    config = read_json(folder / CONFIG)
    if config.get("peft_type") not in KINDS:
        raise _wrong(folder, "peft_type", f"expected one of {', '.join(KINDS)}", config.get("peft_type"))
    _check_names(folder, config)
    _check_lora(folder, config) if config["peft_type"] == "LORA" else _check_numbers(folder, config)
    return config


def read_tensors(folder: Path, config: Mapping[str, Any], *, plain: bool = False) -> dict[str, Tensor]:
    """The weights by their names in the model; of LoRA, pairs are whole and nothing else is among them but
    modules that the config lists.

    Args:
        plain: refuse more than LoRA over linear layers, see `check_plain`.

    Raises:
        InputError: they cannot be read, or are not such tensors.
    """
    tensors = load_weights(weights_file(folder))
    for name, value in tensors.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise InputError(f"{folder}: {name[:200]} has numbers that are not finite; write it again")
    tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    if plain:
        check_plain(folder, config, tensors)
    if config["peft_type"] == "LORA":
        _check_pairs(folder, config, tensors)
        _check_others(folder, config, tensors)
    return tensors


def adapted_layers(tensors: Iterable[str]) -> list[str]:
    """Names of the layers that LoRA tensors are of, in order."""
    return list(dict.fromkeys(IN_A_PAIR.sub("", name) for name in tensors if IN_A_PAIR.search(name)))


def rank_of(config: Mapping[str, Any], layer: str) -> int:
    """The rank that a LoRA config gives a layer."""
    return int(_by_pattern(config, "rank_pattern", layer, config["r"]))


def scale_of(config: Mapping[str, Any], layer: str) -> float:
    """What peft multiplies B A of a layer by: alpha / r, with use_rslora alpha / sqrt(r) (Kalajdzievski 2023,
    arXiv 2312.03732)."""
    rank = rank_of(config, layer)
    alpha = float(_by_pattern(config, "alpha_pattern", layer, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(config: Mapping[str, Any], key: str, layer: str, otherwise: float) -> float:
    """The value of the first pattern that fits, looked up by peft; `_check_names` has seen the patterns."""
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.get(key) or {}
    return patterns.get(get_pattern_key(list(patterns), layer), otherwise)


def check_plain(folder: Path, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse an adapter that is more than B and A over linear layers.

    Raises:
        InputError: what it has besides, and what to do.
    """
    names = " ".join(tensors)
    start = str(config.get("init_lora_weights"))
    more = {
        f"its peft_type is {config['peft_type']}": config["peft_type"] != "LORA",
        "use_dora scales whole weights": config.get("use_dora") or ".lora_magnitude_vector" in names,
        "lora_bias trains biases": config.get("lora_bias") or ".lora_B.bias" in names,
        f"bias {config.get('bias')!r} trains the base's biases": config.get("bias") not in (None, "none"),
        "it adapts an embedding": ".lora_embedding_" in names,
        f"init_lora_weights {start} changes the base": start.startswith(("pissa", "olora")),
    }
    extra = next((what for what, true in more.items() if true), None)
    if extra is not None:
        raise InputError(
            f"{folder}: expected plain LoRA over linear layers, and {extra}; train it again without this, or "
            "merge it into its base with peft (merge_and_unload) and take the merged model as the base"
        )


def arguments_for_peft(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """What peft's config is made of: of LoRA the layers by name and no pattern, nothing that imports."""
    if config["peft_type"] == "LORA":
        kept = {key: value for key, value in config.items() if OF_LORA.fullmatch(key) and value is not None}
        return kept | {"target_modules": adapted_layers(tensors)}
    left_out = ("megatron_config", "megatron_core", "auto_mapping", "runtime_config")
    return {key: value for key, value in config.items() if key not in left_out}


def _wrong(folder: Path, key: str, expected: str, value: object) -> InputError:
    return InputError(f"{folder / CONFIG}: {key}: {expected}, found {str(value)[:60]!r}; restore the file")


def _check_names(folder: Path, config: Mapping[str, Any]) -> None:
    """What peft takes for regular expressions must be as fast as a name; a pattern of LoRA's layers is not
    used."""
    unused = ("target_modules", "exclude_modules", "layers_pattern") if config["peft_type"] == "LORA" else ()
    for key, value in config.items():
        if key in unused or not key.endswith(("modules", "pattern", "modules_to_save")):
            continue
        names = value if isinstance(value, list | dict) else [value or ""]
        if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
            raise _wrong(folder, key, "expected names of layers, without patterns", value)


def _check_lora(folder: Path, config: Mapping[str, Any]) -> None:
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(pattern, dict) for pattern in patterns):
        raise _wrong(folder, "rank_pattern, alpha_pattern", "expected names and numbers", patterns)
    for rank in (config.get("r"), *patterns[0].values()):
        if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
            raise _wrong(folder, "r", f"expected a whole number from 1 to {LARGEST_RANK}", rank)
    for alpha in (config.get("lora_alpha"), *patterns[1].values()):
        if type(alpha) not in (int, float) or not 0 < abs(alpha) <= LARGEST_ALPHA:
            raise _wrong(folder, "lora_alpha", f"expected a number up to {LARGEST_ALPHA:g}", alpha)
    start = config.get("init_lora_weights")
    if not (isinstance(start, bool | None) or (isinstance(start, str) and START.fullmatch(start))):
        raise _wrong(folder, "init_lora_weights", "expected a start that needs no data", start)
    for key, value in config.items():
        if NOT_READ.fullmatch(key) and value:
            raise _wrong(folder, key, "adapters with this are not read", value)


def _check_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise _wrong(folder, key, f"expected a number up to {LARGEST:,}", value)


def _check_pairs(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    layers = adapted_layers(tensors)
    if not layers:
        raise InputError(f"{folder}: {WEIGHTS} has no LoRA pair; write the adapter again")
    for layer in layers:
        A, B = (tensors.get(f"{layer}.lora_{part}.weight") for part in "AB")
        if A is None and B is None:
            A, B = (tensors.get(f"{layer}.lora_embedding_{part}") for part in "AB")
        rank = rank_of(config, layer)
        if A is None or B is None or not _is_pair(B, A, rank):
            shapes = [tuple(factor.shape) if factor is not None else "nothing" for factor in (B, A)]
            raise InputError(
                f"{folder}: layer {layer[:200]!r}: expected B and A of rank {rank}, found {shapes[0]} "
                f"and {shapes[1]}; write the adapter again"
            )


def _is_pair(B: Tensor, A: Tensor, rank: int) -> bool:
    numbers = B.is_floating_point() and A.is_floating_point()
    return numbers and A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] == rank


def _check_others(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Tensors that belong to no pair and no listed module would overwrite the base's own."""
    listed = config.get("modules_to_save") or ()
    modules = [*listed, *(("classifier", "score") if config.get("task_type") in HAVE_HEADS else ())]
    biases = config.get("bias") in ("all", "lora_only")
    for name in tensors:
        saved = any(f".{module}." in f".{name}" for module in modules) or (biases and name.endswith(".bias"))
        if not IN_A_PAIR.search(name) and not saved:
            raise InputError(
                f"{folder}: the tensor {name[:200]!r} belongs to no LoRA pair and to no module in "
                "modules_to_save; write the adapter again"
            )
