"""A model on the meta device, from its config.json: names and shapes without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedsb.errors import InputError
from fedsb.models.config_json import stored_config
from fedsb.models.head import (
    CAUSAL,
    IMAGE,
    SEQUENCE,
    draw_head,
    head_options,
    keep_in_float32,
    keeps_head,
    model_class_of,
)
from fedsb.models.limits import fit_pad_id
from fedsb.models.load import KINDS, auto_class, cause, check_folder, quiet_loading
from fedsb.models.targets import ENCODER_TARGETS, VISION_TARGETS


def load_shapes(
    path: str,
    *,
    num_labels: int | None,
    label_names: Sequence[str] | None = None,
    model_class: str = SEQUENCE,
    multi_label: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> nn.Module:
    """As `load_base`, on the meta device: from config.json alone, without a weight but the head's.

    Raises:
        InputError: no config there, one that no model can be built from, or one of a checkpoint whose own
            head `load_base` would keep: its weights are not here.
    """
    options = {} if num_labels is None else head_options(num_labels, label_names, multi_label=multi_label)
    model_class = CAUSAL if num_labels is None else model_class
    model = _on_meta(path, _load_config(path, options), model_class).eval()
    if num_labels is not None:
        if keeps_head(stored_config(path), num_labels, label_names, model_class):
            raise InputError(
                f"model.path: {path!r} comes with a classification head for these labels, which is kept, and "
                "the server has no weights of it; set evaluation.every and give the server the whole model"
            )
        draw_head(model, dtype=getattr(torch, dtype), seed=seed)
    model.requires_grad_(False)
    if num_labels is not None and dtype != "float32":
        keep_in_float32(model)
    return model


def build_on_meta(path: str, *, num_labels: int | None = None, model_class: str | None = None) -> nn.Module:
    """The model that config.json describes, on the meta device: shapes and names, no weights.

    Of `model_class` if given. Else a classifier of images if the family is one of theirs; of tokens or texts
    if the config says so; of texts if `num_labels` is given or the family is an encoder's; else a causal
    language model.

    Raises:
        InputError: no config there, or one that no model can be built from.
    """
    config = _load_config(path, {} if num_labels is None else {"num_labels": num_labels})
    model_class = model_class or _described(config, num_labels)
    model = _on_meta(path, config, model_class)
    if model_class != CAUSAL and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # a decoder that classifies several rows looks for it
    return model


def _described(config: Any, num_labels: int | None) -> str:
    """The class of the models that a config is of."""
    if config.model_type in VISION_TARGETS:
        return IMAGE
    says = model_class_of(config.architectures)
    if says not in (None, CAUSAL):
        return str(says)
    return SEQUENCE if num_labels is not None or config.model_type in ENCODER_TARGETS else CAUSAL


def _on_meta(path: str, config: Any, model_class: str) -> nn.Module:
    config.architectures = config.architectures or []  # None, where a family has several, is an error there
    try:
        with torch.device("meta"), quiet_loading():
            model: nn.Module = auto_class(model_class).from_config(config, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"model.path: no {KINDS[model_class]} can be built from the config.json of {path!r}: "
            f"{cause(error).rstrip(' .:')}; expected the config of a decoder, or of an encoder with a "
            "classification head"
        ) from error
    return model


def _load_config(path: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    check_folder(path, files=("config.json",), what="config")
    try:
        with quiet_loading():
            return fit_pad_id(AutoConfig.from_pretrained(path, trust_remote_code=False, **options))
    except Exception as error:
        raise InputError(
            f"model.path: no config could be read from {path!r}: {cause(error).rstrip(' .:')}; "
            "expected a folder with a Hugging Face config.json, or the id of a model on the hub"
        ) from error
