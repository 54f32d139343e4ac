"""Kinds of models that cannot be trained here: refused by their config, with the cure, before loading."""

from __future__ import annotations

from typing import Any

from fedsb.errors import InputError
from fedsb.models.config_json import stored_config

FOUR_BIT = "bitsandbytes, 4 bits"


def check_kind(path: str) -> None:
    """Refuse an encoder-decoder, and weights that are stored quantized.

    Weights in bitsandbytes' 4 bits pass: `load_base` says how they are loaded.

    Raises:
        InputError: it is one of these.
    """
    if (config := stored_config(path)) is None:
        return
    if config.is_encoder_decoder:
        raise InputError(
            f"model.path: {path!r} is an encoder-decoder ({config.model_type}), and none is trained here; "
            "take a decoder, such as Llama, Qwen or GPT-2, or for classes an encoder, such as BERT or DeBERTa"
        )
    if (method := quantization(config)) not in (None, FOUR_BIT):
        raise InputError(
            f"model.path: the weights in {path!r} are stored quantized ({method}), and of these only "
            "bitsandbytes' 4 bits are trained on; take the model that they were made from, where memory is "
            "short with model.load_in_4bit: true (pip install 'fedsb[4bit]')"
        )


def quantization(config: Any) -> str | None:
    """How the weights of this config are stored, if they are quantized."""
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        if stored:
            values = stored if isinstance(stored, dict) else stored.to_dict()
            if values.get("load_in_4bit"):
                return FOUR_BIT
            return (
                "bitsandbytes, 8 bits" if values.get("load_in_8bit") else str(values.get("quant_method"))[:40]
            )
    return None
