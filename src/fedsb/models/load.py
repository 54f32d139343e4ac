"""Load a pretrained base model, with its tokenizer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsb.common.seeding import scoped_global_seed
from fedsb.errors import InputError
from fedsb.models.config_json import check_config, stored_config
from fedsb.models.devices import visible_gpus
from fedsb.models.head import (
    CAUSAL,
    IMAGE,
    SEQUENCE,
    TOKEN,
    base_name,
    draw_head,
    head_options,
    keep_in_float32,
    keeps_head,
)
from fedsb.models.kinds import FOUR_BIT, check_kind, quantization
from fedsb.models.limits import pad_option, set_pad_token, text_config

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json")
KINDS = {
    CAUSAL: "language model",
    SEQUENCE: "classifier of texts",
    TOKEN: "classifier of tokens",
    IMAGE: "classifier of images",
}
"""Model classes in words."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt", "tekken.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer; its end token pads where it has no pad token that the model knows.

    Raises:
        InputError: none can be loaded from there.
    """
    from transformers import AutoTokenizer

    check_folder(path, files=TOKENIZER_FILES, what="tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in tokenizers' Rust is no Exception
        raise InputError(f"model.path: no tokenizer could be loaded from {path!r}: {cause(error)}") from error
    set_pad_token(tokenizer, stored_config(path))
    return tokenizer


def load_preprocessor(path: str, model_class: str) -> Any:
    """What makes a model's inputs of rows: its image processor, or its tokenizer.

    Raises:
        InputError: none can be loaded from there.
    """
    return load_image_processor(path) if model_class == IMAGE else load_tokenizer(path)


def load_image_processor(path: str) -> Any:
    """The model's image processor, of the kind that needs Pillow alone.

    Raises:
        InputError: none can be loaded from there.
    """
    from transformers import AutoImageProcessor

    check_folder(path, files=PROCESSOR_FILES, what="image processor")
    try:
        return AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"model.path: no image processor could be loaded from {path!r}: {cause(error)}"
        ) from error


def load_base(
    path: str,
    *,
    tokenizer: Any,
    num_labels: int | None,
    label_names: Sequence[str] | None = None,
    model_class: str = SEQUENCE,
    multi_label: bool = False,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    device: torch.device | None = None,
    device_map: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """The frozen base model in eval mode, with a head if `num_labels` is given: of a `model_class`, see
    `fedsb.models.head`.

    The head is drawn from the seed, unless the checkpoint has one for the same labels; it is fp32 whatever
    `dtype`: it is trained. With `device_map` "auto" the blocks are spread over all visible GPUs and `device`
    plays no part.

    Raises:
        InputError: the folder or its weights cannot be used; the message says what was wrong.
    """
    device = device or torch.device("cpu")
    check_folder(path, files=WEIGHT_FILES, what="weights")
    stored: Any = stored_config(path)
    _check_stored_bits(path, stored, load_in_4bit)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)} | pad_option(stored, tokenizer)
    if load_in_4bit:
        options |= _four_bit(dtype, device)
    if device_map is not None:
        options |= _spread(device_map)
    if num_labels is not None:
        options |= head_options(num_labels, label_names, multi_label=multi_label)
    model_class = CAUSAL if num_labels is None else model_class
    with scoped_global_seed(seed, "head"), quiet_loading():
        model = _from_pretrained(path, model_class, options)
    if num_labels is not None and not keeps_head(stored, num_labels, label_names, model_class):
        draw_head(model, dtype=getattr(torch, dtype), seed=seed)
    if hasattr(tokenizer, "pad_token_id"):
        text_config(model.config).pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    _cast_the_rest(model, getattr(torch, dtype))
    if num_labels is not None and dtype != "float32":
        keep_in_float32(model)
    if device_map is not None:
        _check_none_left_out(model)
    return model.eval() if load_in_4bit or device_map is not None else model.to(device).eval()


def _check_stored_bits(path: str, config: Any, load_in_4bit: bool) -> None:
    if config is not None and quantization(config) == FOUR_BIT and not load_in_4bit:
        raise InputError(
            f"model.path: the weights in {path!r} are stored in bitsandbytes' 4 bits; set "
            "model.load_in_4bit: true (pip install 'fedsb[4bit]'), or take the model that they were made from"
        )


def input_device(model: Any) -> torch.device:
    """Where inputs go in: the device of the first weights, which is the model's if it is on one."""
    device: torch.device = next(model.parameters()).device
    return device


def _spread(device_map: str) -> dict[str, Any]:
    if not visible_gpus():
        raise InputError(
            f"model.device_map: {device_map} spreads a model over GPUs, and none is visible; leave it out"
        )
    return {"device_map": device_map}


def _check_none_left_out(model: Any) -> None:
    """Parts that did not fit on the GPUs would be moved there and back for every batch: refuse them."""
    left = [name for name, place in model.hf_device_map.items() if str(place) in ("cpu", "disk")]
    if left:
        raise InputError(
            f"model.device_map: {len(left)} parts, such as {left[0]}, do not fit on the "
            f"{len(visible_gpus())} visible GPUs; take model.dtype: bfloat16, "
            "model.load_in_4bit: true or more GPUs"
        )


def _cast_the_rest(model: Any, dtype: torch.dtype) -> None:
    """Give parameters that the model's code makes in fp32 (DeBERTa's biases of queries and values) the base's
    dtype, unless the family wants some kept in fp32."""
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        return
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def enable_checkpointing(model: Any) -> None:
    """Gradient checkpointing of the re-entrant kind, which the update estimate and Opacus need."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()


def auto_class(model_class: str) -> Any:
    """transformers' class that loads such models."""
    import transformers

    return getattr(transformers, f"AutoModelFor{model_class}")


def _from_pretrained(path: str, model_class: str, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError

    try:
        model, report = auto_class(model_class).from_pretrained(
            path,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,  # a head of another task; of the base, they are refused below
            **options,
        )
    except SafetensorError as error:
        raise InputError(
            f"model.path: the weights in {path!r} are corrupt ({error}); fetch them again"
        ) from error
    except Exception as error:
        raise InputError(f"model.path: {path!r} could not be loaded: {cause(error)}") from error
    _check_shapes(path, model, report["mismatched_keys"], whole=model_class == CAUSAL)
    _check_belongs(path, model, report["missing_keys"])
    return model


def _check_shapes(path: str, model: Any, differ: Iterable[tuple[str, Any, Any]], *, whole: bool) -> None:
    """Tensors of another shape than config.json says load as random numbers: refuse them outside a head."""
    prefix = "" if whole else f"{base_name(model)}."
    for name, stored, expected in sorted(differ):
        if name.startswith(prefix):
            raise InputError(
                f"model.path: {name} is {_times(stored)} in the weights of {path!r}, {_times(expected)} by "
                "its config.json; take both from one model"
            )


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _check_belongs(path: str, model: Any, missing: Iterable[str]) -> None:
    """Weights of something else load as random numbers: refuse them. A few missing (a pooler) are usual."""
    prefix = f"{base_name(model)}."
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    absent = sorted(name for name in missing if name.startswith(prefix))
    if 2 * len(absent) > len(names):
        raise InputError(
            f"model.path: the weights in {path!r} are not of this model: {len(absent)} of {len(names)} "
            f"tensors are missing, such as {absent[0]}; take config.json and weights from one model"
        )


def _four_bit(dtype: str, device: torch.device) -> dict[str, Any]:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError(
            "model.load_in_4bit: bitsandbytes is not installed; pip install 'fedsb[4bit]'"
        ) from None
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def check_folder(path: str, *, files: Sequence[str], what: str) -> None:
    """A folder that is named must be there and hold a model's config and some of `files`, and no adapter.

    Raises:
        InputError: it does not, or the config is of no model; an id on the hub needs no files here.
    """
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise InputError(f"model.path: the folder {path!r} does not exist")
        check_config(path)
        return check_kind(path)
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path: {path!r} has no config.json; expected a Hugging Face model folder")
    if not any(any(folder.glob(pattern)) for pattern in files):
        raise InputError(
            f"model.path: {path!r} has no {what} (looked for {', '.join(files)}); copy the files there"
        )
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"model.path: {path!r} holds an adapter beside the model (adapter_config.json), which would be "
            "put on it unasked; move it away, or merge it first"
        )
    check_config(path)
    check_kind(path)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No notice that the head is fresh: that is what was asked for."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def cause(error: BaseException) -> str:
    """Why a library could not load something, in a line."""
    text = str(error)
    if unknown := re.search(r"configuration class <class '.*?(\w+)Config'> for .*AutoModelFor(\w+)", text):
        return f"transformers has no {KINDS.get(unknown[2], unknown[2])} of the family {unknown[1]}"
    if "trust_remote_code" in text:
        return (
            "it needs code of its own, and no code from a model's folder is run; take a model of a family "
            "that transformers has, or remove auto_map from its files"
        )
    if "weights_only" in text or "Weights only" in text:
        return (
            "its weights are a pickle with more than tensors in it, which is not opened; take the model's "
            "safetensors file"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]
