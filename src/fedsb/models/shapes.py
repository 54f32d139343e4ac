"""A model on the meta device, from its config.json: names and shapes without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedsb.common.seeding import scoped_global_seed
from fedsb.errors import InputError
from fedsb.models.head import CLASSIFIER, head_parameters, keep_in_float32
from fedsb.models.limits import fit_pad_id
from fedsb.models.load import cause, check_folder, head_options, quiet_loading
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

    The head is that of `load_base` with the same seed, unless the checkpoint lacks weights of the base too (a
    pooler): those are drawn before it there.

    Raises:
        InputError: no config there, or one that no model can be built from.
    """
    options = {} if num_labels is None else head_options(num_labels, label_names)
    model = _on_meta(path, _load_config(path, options), classifies=num_labels is not None).eval()
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, old in (head_parameters(model) if num_labels is not None else {}).items():
        owner, _, leaf = name.rpartition(".")
        empty = torch.empty(old.shape, dtype=getattr(torch, dtype))
        setattr(model.get_submodule(owner), leaf, nn.Parameter(empty))
    with scoped_global_seed(seed, "head"):
        model.initialize_weights()  # type: ignore[operator]
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
    return _on_meta(path, config, classifies=classifies)


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
            return fit_pad_id(AutoConfig.from_pretrained(path, trust_remote_code=False, **options))
    except Exception as error:
        raise InputError(
            f"model.path: no config could be read from {path!r}: {cause(error).rstrip(' .:')}; "
            "expected a folder with a Hugging Face config.json, or the id of a model on the hub"
        ) from error
