"""A merged model that describes itself: its config says what its weights are, and its loss is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsb.adapter.attached import Attached
from fedsb.adapter.linear import dense_weight
from fedsb.config import RunConfig
from fedsb.config.sections.task import ChatConfig
from fedsb.errors import RunFailed
from fedsb.models.head import problem_type
from fedsb.models.load import quiet_loading
from fedsb.tasks.chat.template import chat_template


@dataclass(frozen=True)
class Merged:
    """What merging cost.

    Attributes:
        dtype: of the weights that were written.
        lost_share: of the update, in Frobenius norm over all layers, that rounding to `dtype` took away.
        logits_difference: the largest from the logits of base and adapter, relative to the largest logit.
    """

    dtype: str
    lost_share: float
    logits_difference: float

    def __str__(self) -> str:
        lost = f"rounding to {self.dtype} lost {100 * self.lost_share:.3g} % of the update"
        return f"{lost}; logits differ by at most {self.logits_difference:.2g} of the largest"


def lost_share(attached: Attached, dtype: torch.dtype) -> float:
    """||(W - W0) - update|| / ||update|| over all layers, W0 and W = W0 + update being rounded to `dtype`."""
    lost = whole = 0.0
    for layer in attached.layers.values():
        update, W0 = layer.update(), dense_weight(layer.base)
        kept = (W0 + update).to(dtype).float() - W0.to(dtype).float()
        lost += float((kept - update).square().sum())
        whole += float(update.square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0


def with_template(config: RunConfig, tokenizer: Any) -> tuple[int, ...]:
    """Give the tokenizer the chat template that a run trained with; the tokens that end its answers."""
    if not isinstance(config.task, ChatConfig):
        return ()
    template = chat_template(tokenizer, plain=config.task.template == "plain")
    if not template.own:
        tokenizer.chat_template = template.source
    return (template.end_id,)


def describe(
    model: Any,
    tokenizer: Any,
    dtype: torch.dtype,
    *,
    longest: int | None,
    ends: tuple[int, ...] = (),
    multi_label: bool = False,
) -> None:
    """Cast the merged model to one dtype, and make its config true of it and of the run's task.

    Args:
        longest: tokens of an answer, of a model that gives answers. ends: what ends one, besides the
            tokenizer's end token.
        multi_label: whether an example may have several labels.
    """
    _cast(model, dtype)
    config = model.config
    config.dtype = dtype
    if hasattr(tokenizer, "pad_token_id"):
        config.pad_token_id = tokenizer.pad_token_id
    if getattr(config, "task_specific_params", None):
        config.task_specific_params = None  # older pipelines follow them, and they are of the base's tasks
    _describe_ties(model)
    if model.can_generate():
        model.generation_config = _generation(model.generation_config, tokenizer, longest, ends)
    else:
        config.problem_type = problem_type(config.num_labels, multi_label)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """All of one dtype, the head too: a config names one, and whoever loads the folder gets that one."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _describe_ties(model: Any) -> None:
    """An adapted output layer has a weight of its own, whatever the base's had."""
    output = model.get_output_embeddings()
    if output is not None and output.weight is not model.get_input_embeddings().weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _generation(base: Any, tokenizer: Any, longest: int | None, ends: tuple[int, ...]) -> Any:
    """As the run answered: greedily, up to the end token of its training. The base's own settings (sampling,
    penalties, other end tokens, whatever contradicts itself) were not used and are left out."""
    from transformers import GenerationConfig

    kept = {name: getattr(base, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
    stops = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    ids = {"eos_token_id": stops if len(stops) > 1 else stops[0], "pad_token_id": tokenizer.pad_token_id}
    return GenerationConfig(do_sample=False, max_new_tokens=longest, **kept, **ids)


def load_as_written(folder: Path, model: Any) -> nn.Module:
    """The model of a folder as its config alone says, compared with the one in memory it was written from.

    Raises:
        RunFailed: a weight of it is another one.
    """
    with quiet_loading():
        loaded: nn.Module = type(model).from_pretrained(folder, trust_remote_code=False).eval()
    there, here = loaded.state_dict(), model.state_dict()
    other = [name for name, tensor in here.items() if not _same(there.get(name), tensor)]
    if other or there.keys() != here.keys():
        name = (other or sorted(there.keys() - here.keys()))[0]
        raise RunFailed(f"export: {name} of what was written is another; nothing was kept")
    return loaded


def _same(there: torch.Tensor | None, here: torch.Tensor) -> bool:
    return there is not None and there.dtype == here.dtype and torch.equal(there, here)
