"""Load a base model and its tokenizer; say which layers its family adapts by default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsb.attached import find_targets, linear_layers
from fedsb.errors import InputError
from fedsb.head import head_parameters, keep_in_float32
from fedsb.linear import is_linear
from fedsb.seeding import scoped_global_seed

ENCODER_TARGETS = {
    "albert": ["query", "value"],
    "bert": ["query", "value"],
    "camembert": ["query", "value"],
    "deberta": ["in_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "electra": ["query", "value"],
    "modernbert": ["Wqkv"],
    "mpnet": ["attn.q", "attn.v"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
}
"""Query and value, as LoRA's authors adapt encoders; other families: every attention and MLP projection."""

GROUPS = ("all-linear", "attention", "mlp")
"""Words that stand for layers, as in `method.targets`: all in the repeated blocks, or those of one kind."""

CLASSIFIER = "ForSequenceClassification"
"""Ends the class names of such models, in `architectures` of a config too."""

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt", "tekken.json")


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"model.device: cannot use {name!r} here: {str(error).splitlines()[0]}") from None
    return device


def visible_gpus() -> list[torch.device]:
    """The GPUs this process may use."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer; its end token pads where it has no pad token.

    Raises:
        InputError: none can be loaded from there.
    """
    from transformers import AutoTokenizer

    _check_folder(path, files=TOKENIZER_FILES, what="tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise InputError(
            f"model.path: no tokenizer could be loaded from {path!r}: {_first_line(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    path: str,
    *,
    tokenizer: Any,
    num_labels: int | None,
    label_names: Sequence[str] | None = None,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    device: torch.device | None = None,
    device_map: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """The frozen base model in eval mode, with a fresh head from the seed if `num_labels` is given.

    The head is fp32 whatever `dtype`: it is trained. With `device_map` "auto" the blocks are spread over all
    visible GPUs and `device` plays no part.

    Raises:
        InputError: the folder or its weights cannot be used; the message says what was wrong.
    """
    device = device or torch.device("cpu")
    _check_folder(path, files=WEIGHT_FILES, what="weights")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if load_in_4bit:
        options |= _four_bit(dtype, device)
    if device_map is not None:
        options |= _spread(device_map)
    if num_labels is not None:
        options |= _head_options(num_labels, label_names)
    with scoped_global_seed(seed, "head"), _quiet_loading():
        model = _from_pretrained(path, causal=num_labels is None, options=options)
    model.config.pad_token_id = tokenizer.pad_token_id if tokenizer is not None else model.config.pad_token_id
    model.requires_grad_(False)
    _cast_the_rest(model, getattr(torch, dtype))
    if num_labels is not None and dtype != "float32":
        keep_in_float32(model)
    if device_map is not None:
        _check_none_left_out(model)
    return model.eval() if load_in_4bit or device_map is not None else model.to(device).eval()


def input_device(model: Any) -> torch.device:
    """Where token ids go in: the embeddings' device, which is the model's if it is on one."""
    device: torch.device = model.get_input_embeddings().weight.device
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
    options = {} if num_labels is None else _head_options(num_labels, label_names)
    model = _on_meta(path, _load_config(path, options), classifies=num_labels is not None).eval()
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, old in (head_parameters(model) if num_labels is not None else {}).items():
        owner, _, leaf = name.rpartition(".")
        setattr(
            model.get_submodule(owner),
            leaf,
            nn.Parameter(torch.empty(old.shape, dtype=getattr(torch, dtype))),
        )
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
        with torch.device("meta"), _quiet_loading():
            model: nn.Module = loader.from_config(config, trust_remote_code=False)
    except Exception as error:
        kind = "sequence classifier" if classifies else "causal language model"
        raise InputError(
            f"model.path: no {kind} can be built from the config.json of {path!r}: {_one_line(error)}; "
            "expected the config of a decoder, or of an encoder with a classification head"
        ) from error
    return model


def is_classifier(model: nn.Module) -> bool:
    """Whether the model ends in a sequence-classification head."""
    return CLASSIFIER in type(model).__name__


def _load_config(path: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    _check_folder(path, files=("config.json",), what="config")
    try:
        with _quiet_loading():
            return AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:
        raise InputError(
            f"model.path: no config could be read from {path!r}: {_one_line(error)}; "
            "expected a folder with a Hugging Face config.json, or the id of a model on the hub"
        ) from error


def default_targets(model: nn.Module) -> list[str]:
    """Layer-name endings that are adapted when the config names none.

    Encoders: query and value. Decoders: every attention and MLP projection, i.e. every linear layer of the
    base model (the output layer and a classification head are not in it).
    """
    family = model.config.model_type  # type: ignore[union-attr]
    if family in ENCODER_TARGETS:
        return ENCODER_TARGETS[family]  # type: ignore[index]
    base: nn.Module = model.base_model  # type: ignore[assignment]
    endings = {
        name.rsplit(".", 1)[-1]: None for name, module in base.named_modules() if name and is_linear(module)
    }
    return list(endings)


def group(model: nn.Module, name: str) -> list[str]:
    """Names of a group's linear layers, inside the model's repeated blocks: no pooler, output layer or head.

    all-linear: all of them. attention: those somewhere inside a module whose class is an attention.
    mlp: the others.

    Raises:
        InputError: there are none.
    """
    inside = [layer for layer in linear_layers(model) if any(part.isdigit() for part in layer.split("."))]
    if name != "all-linear":
        inside = [layer for layer in inside if _is_attention(model, layer) == (name == "attention")]
    if not inside:
        raise InputError(f"method.targets: {name} found no linear layer in repeated blocks; name the layers")
    return inside


def _is_attention(model: nn.Module, layer: str) -> bool:
    parts = layer.split(".")
    around = (model.get_submodule(".".join(parts[:n])) for n in range(1, len(parts)))
    return any("Attention" in type(module).__name__ for module in around)


def chosen_targets(model: nn.Module, wanted: Sequence[str] | str | None) -> dict[str, nn.Module]:
    """The layers to adapt: those named, those of a group, or (None) the family's default.

    Layers of a classification head are left out: it trains whole.

    Raises:
        InputError: a name matches nothing but the head, or nothing.
    """
    names = group(model, wanted) if isinstance(wanted, str) else wanted or default_targets(model)
    found = find_targets(model, names)
    if not is_classifier(model):
        return found
    head = set(head_parameters(model))
    kept = {name: layer for name, layer in found.items() if f"{name}.weight" not in head}
    if not kept:
        raise InputError(
            f"method.targets: {', '.join(found)} belongs to the task head, which trains whole; name layers "
            "of the base model, or leave targets out"
        )
    return kept


def enable_checkpointing(model: Any) -> None:
    """Gradient checkpointing of the re-entrant kind, which the update estimate and Opacus need."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()


def _from_pretrained(path: str, *, causal: bool, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loader: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    try:
        model, report = loader.from_pretrained(path, output_loading_info=True, **options)
    except SafetensorError as error:
        raise InputError(
            f"model.path: the weights in {path!r} are corrupt ({error}); fetch them again"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model.path: {path!r} could not be loaded: {_first_line(error)}") from error
    _check_belongs(path, model, report["missing_keys"])
    return model


def _check_belongs(path: str, model: Any, missing: Iterable[str]) -> None:
    """Weights of something else load as random numbers: refuse them. A few missing (a pooler) are usual."""
    prefix = f"{model.base_model_prefix}."
    wanted = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    absent = sorted(name for name in missing if name.startswith(prefix))
    if 2 * len(absent) > len(wanted):
        raise InputError(
            f"model.path: the weights in {path!r} are not of this model: {len(absent)} of {len(wanted)} "
            f"tensors are missing, such as {absent[0]}; take config.json and weights from one model"
        )


def _head_options(num_labels: int, label_names: Sequence[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_labels": num_labels}
    if num_labels == 1:
        options["problem_type"] = "regression"
    if label_names is not None:
        options["id2label"] = dict(enumerate(label_names))
        options["label2id"] = {name: i for i, name in enumerate(label_names)}
    return options


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


def _check_folder(path: str, *, files: Sequence[str], what: str) -> None:
    """A folder that is named must be there and hold a model's config and some of `files`."""
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise InputError(f"model.path: the folder {path!r} does not exist")
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path: {path!r} has no config.json; expected a Hugging Face model folder")
    if not any(found for pattern in files for found in folder.glob(pattern)):
        raise InputError(
            f"model.path: {path!r} has no {what} (looked for {', '.join(files)}); "
            "copy the model's files there"
        )


@contextlib.contextmanager
def _quiet_loading() -> Any:
    """No notice that the head is fresh: that is what was asked for."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(" .:") or type(error).__name__
