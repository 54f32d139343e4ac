"""A model on the meta device, from its config.json: names and shapes without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedsb.errors import InputError
from fedsb.models.config_json import stored_config
from fedsb.models.head import CLASSIFIER, draw_head, head_options, keep_in_float32, keeps_head
from fedsb.models.load import cause, check_folder, quiet_loading
from fedsb.models.targets import ENCODER_TARGETS


def load_shapes(
    path: str,
    *,
    num_labels: int | None,
    label_names: Sequence[str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> nn.Module:
    """As `load_base`, on the meta device: from config.json alone, without a weight but the head's.

    Raises:
        InputError: no config there, one that no model can be built from, or one of a checkpoint whose own
            head `load_base` would keep: its weights are not here.
    """
    options = {} if num_labels is None else head_options(num_labels, label_names)
    model = _on_meta(path, _load_config(path, options), classifies=num_labels is not None).eval()
    if num_labels is not None:
        if keeps_head(stored_config(path), num_labels, label_names):
            raise InputError(
                f"model.path: {path!r} comes with a classification head for these labels, which is kept, and "
                "the server has no weights of it; set evaluation.every and give the server the whole model"
            )
        draw_head(model, dtype=getattr(torch, dtype), seed=seed)
    model.requires_grad_(False)
    if num_labels is not None and dtype != "float32":
        keep_in_float32(model)
    return model


def build_on_meta(path: str, *, num_labels: int | None = None) -> nn.Module:
    """The model that config.json describes, on the meta device: shapes and names, no weights.

    A sequence classifier if `num_labels` is given, the family is an encoder's, or the config says so; else a
    causal language model.

    Raises:
        InputError: no config there, or one that no model can be built from.
    """
    config = _load_config(path, {} if num_labels is None else {"num_labels": num_labels})
    says_so = any(CLASSIFIER in name for name in config.architectures or [])
    classifies = num_labels is not None or config.model_type in ENCODER_TARGETS or says_so
    model = _on_meta(path, config, classifies=classifies)
    if classifies and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # a decoder that classifies several rows looks for it
    return model


def _on_meta(path: str, config: Any, *, classifies: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loader: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    try:
        with torch.device("meta"), quiet_loading():
            model: nn.Module = loader.from_config(config, trust_remote_code=False)
    except Exception as error:
        kind = "sequence classifier" if classifies else "causal language model"
        raise InputError(
            f"model.path: no {kind} can be built from the config.json of {path!r}: "
            f"{cause(error).rstrip(' .:')}; expected the config of a decoder, or of an encoder with a "
            "classification head"
        ) from error
    return model


def _load_config(path: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    check_folder(path, files=("config.json",), what="config")
    try:
        with quiet_loading():
            return AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:
        raise InputError(
            f"model.path: no config could be read from {path!r}: {cause(error).rstrip(' .:')}; "
            "expected a folder with a Hugging Face config.json, or the id of a model on the hub"
        ) from error
