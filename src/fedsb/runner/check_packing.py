"""Whether a model keeps the examples of a packed row apart, tried on two of them before the start."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from typing import Any

from torch import Tensor

from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.runner.prepare_data import Data
from fedsb.tasks.packing import packed, packed_logits
from fedsb.tasks.task import Example, evaluating

NEAR = {"float32": (1e-4, 1e-5), "bfloat16": (0.05, 0.02), "float16": (0.05, 0.02)}
"""How far logits in a packed row may be from those of the row alone, and from themselves behind another
example; as shares of the largest. The second is rounding, where experts get other tokens beside them."""
CURE = "leave it out, or take another model"


def check_packing(config: RunConfig, data: Data, model: Any) -> None:
    """Refuse `training.packing` where an example behind another in one row has other logits than alone, or
    where they change with what the first one is.

    Raises:
        InputError: names the model's family, and nothing of the rows.
    """
    if not config.training.packing or not (data.train or data.test):
        return
    longest = nlargest(2, data.train or data.test, key=lambda example: len(example["input_ids"]))
    half = max(len(longest[0]["input_ids"]) // 2, 8)
    first, second = (_cut(example, half) for example in (longest[0], longest[-1]))
    other = first | {"input_ids": [first["input_ids"][-1]] * len(first["input_ids"])}
    with stage("training.packing", "a pass over two examples in one row", CURE), evaluating(model):
        alone, behind, elsewhere = (
            _last_logits(data, model, row) for row in ([second], [first, second], [other, second])
        )
    near, same = (share * float(alone.abs().max()) for share in NEAR[config.model.dtype])
    if not (float((behind - alone).abs().max()) <= near and float((behind - elsewhere).abs().max()) <= same):
        raise InputError(
            f"training.packing: this model ({model.config.model_type}) does not keep the examples of a row "
            f"apart, so that one would learn from another; {CURE}"
        )


def _cut(example: Example, length: int) -> Example:
    """Its first tokens, so that two of them are a row that training has room for."""
    return {name: example[name][:length] for name in ("input_ids", "labels")}


def _last_logits(data: Data, model: Any, examples: Sequence[Example]) -> Tensor:
    """(tokens, vocabulary) of the last of the examples, which are in one row in this order."""
    width = sum(len(example["input_ids"]) for example in examples)
    batch = packed(data.task, data.tokenizer, width=width).collate(examples)
    logits: Tensor = packed_logits(model, batch)[0, -len(examples[-1]["input_ids"]) :]
    return logits.float()
