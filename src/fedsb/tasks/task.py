"""What a task is, and the batching that both families share.

A task is a value: a frozen record of functions. To add a family, write a function that returns one.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedsb.adapter.routing import NOT_FOR_THE_MODEL, tell
from fedsb.tasks.totals import Totals

Row = Mapping[str, object]
Example = dict[str, Any]
Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Example]], Batch]
Progress = Callable[[int, int], None]  # (examples done, examples in all)
RELATIVE_SEGMENTS = ("funnel", "xlnet")
"""Families that ask only whether two tokens are of one segment."""


@dataclass(frozen=True)
class Measurement:
    """What was measured on `count` examples, so that it can be scored on any of them.

    metrics(indices): the metrics over the examples with these indices, repeats allowed.
    shares: the metrics that are means of noughts and ones.
    sums: over all examples, by the names of `Task.totals`.
    """

    count: int
    metrics: Callable[[np.ndarray], dict[str, float]]
    shares: frozenset[str] = frozenset()
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)

    def all(self) -> dict[str, float]:
        """The metrics over all examples, each once."""
        return self.metrics(np.arange(self.count))


@dataclass(frozen=True, kw_only=True)
class Task:
    """How rows become examples, losses and metrics.

    encode(rows, source): token ids and labels as plain lists and numbers, unpadded, in the order of `rows`.
        `source` names the file in errors; rows are numbered from 1 in the sequence given.
    collate(examples): tensors padded on the right, with `attention_mask` (from the lengths, so a pad id that
        also occurs as a real token is not masked) and `labels`. No example: tensors with 0 rows. Where every
        example has an `expert`, `experts`; where only some of the tokens are the question, `asked` (rows,
        width): both are for a router and kept from the model.
    losses(model, batch): one fp32 loss per example, shape (batch,), on the model's device. Differentiable.
        The loss of an example does not depend on its neighbours in the batch, so its gradient is its own.
    measure(model, examples, *, batch_size, generate=None, progress=None): what `evaluate` gives as
        numbers, as measurements of single examples. Without gradients and in eval mode; the former mode of
        every module comes back. Independent of batch_size up to float error. generate: how many of the first
        examples to answer by greedy generation (causal-lm; classification ignores it). progress is called
        after each batch.
    partition_label(row): the label as text, for partitions by label; None where there are no classes.
    totals: the sums that scores can be made of far from the examples; None where there are none.
    questions(rows, source): as encode, of rows that need no label and no response: what a model is given to
        find them. None: this task cannot.
    said(logits, example): what `fedsb predict` says of one of `questions`, from its logits. None: the
        likeliest class with all probabilities, or the number.
    ends: tokens that end a generated answer, besides the tokenizer's end token.
    notes: how the rows are read, in sentences for people.
    """

    primary_metric: str
    higher_is_better: bool
    num_labels: int | None  # None: no classification head; 1: regression
    label_names: tuple[str, ...] | None  # the name of class i at place i
    encode: Callable[[Sequence[Row], str], list[Example]]
    collate: Callable[[Sequence[Example]], Batch]
    losses: Callable[[nn.Module, Batch], Tensor]
    measure: Callable[..., list[Measurement]]
    partition_label: Callable[[Row], str] | None
    totals: Totals | None = None
    questions: Callable[[Sequence[Row], str], list[Example]] | None = None
    said: Callable[[Tensor, Example], dict[str, Any]] | None = None
    ends: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def evaluate(self, model: nn.Module, examples: Sequence[Example], **arguments: Any) -> dict[str, float]:
        """The metrics over all examples; arguments as of `measure`."""
        measurements = self.measure(model, examples, **arguments)
        return {name: value for measured in measurements for name, value in measured.all().items()}


def token_ids(example: Example) -> Sequence[int]:
    """An example's token ids; none of an image."""
    ids: Sequence[int] = example.get("input_ids", ())
    return ids


def length_of(example: Example) -> int:
    """An example's length in tokens, by which batches are sorted; 0 of an image, which are all alike."""
    return len(token_ids(example))


def content_of(example: Example) -> Hashable:
    """What two examples of the same input have alike."""
    return tuple(token_ids(example)) or example.get("content")


def pad(
    sequences: Sequence[Sequence[int]], value: int, *, side: Literal["left", "right"] = "right"
) -> Int[Tensor, "rows width"]:
    """Stack sequences, filled with `value` up to the longest. At least one column wide."""
    width = max((len(sequence) for sequence in sequences), default=1) or 1
    padded = torch.full((len(sequences), width), value, dtype=torch.long)
    for row, sequence in zip(padded, sequences, strict=True):
        start = width - len(sequence) if side == "left" else 0
        row[start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return padded


def attention_mask(
    sequences: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "right"
) -> Int[Tensor, "rows width"]:
    """1 at the real tokens of `pad(sequences, ..., side=side)`, 0 at the filling."""
    return pad([[1] * len(sequence) for sequence in sequences], 0, side=side)


def model_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits for a batch, in the model's dtype."""
    logits: Tensor = model(**model_inputs(model, batch)).logits
    return logits


def model_inputs(model: nn.Module, batch: Batch) -> Batch:
    """What a model is given of a batch, on its device, with token types as far as it has any.

    Its routing, where it has one, is told the rest, see `tell`.
    """
    device = device_of(model)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    if hasattr(model, "routing"):
        tell(model, batch)
    inputs = {name: tensor for name, tensor in batch.items() if name not in NOT_FOR_THE_MODEL}
    return with_segments_in_reach(inputs, getattr(model, "config", None))


def with_segments_in_reach(inputs: Mapping[str, Tensor], config: Any | None) -> dict[str, Tensor]:
    """A model's inputs with token types that it has; without any where it has fewer than two."""
    kinds = inputs.get("token_type_ids")
    rest = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
    if kinds is None or config is None or config.model_type in RELATIVE_SEGMENTS:
        return dict(inputs)
    count = getattr(config, "type_vocab_size", None) or 0
    return rest | {"token_type_ids": kinds.clamp(max=count - 1)} if count > 1 else rest


def own_experts(examples: Sequence[Example]) -> Batch:
    """`experts` of a batch, (rows,): each example's own, where all have one; else nothing."""
    if not examples or not all("expert" in example for example in examples):
        return {}
    return {"experts": torch.tensor([example["expert"] for example in examples])}


def device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of examples of like length, longest first: little padding, and lack of memory shows early."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module has the mode it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def collate_texts(tokenizer: Any, examples: Sequence[Example], *, label_type: torch.dtype) -> Batch:
    """A batch of examples with input_ids, labels and, maybe, token_type_ids."""
    ids = [example["input_ids"] for example in examples]
    batch = {"input_ids": pad(ids, pad_token_id(tokenizer)), "attention_mask": attention_mask(ids)}
    if any("token_type_ids" in example for example in examples):
        batch["token_type_ids"] = pad([e["token_type_ids"] for e in examples], tokenizer.pad_token_type_id)
    batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=label_type)
    return batch | own_experts(examples)


def pad_token_id(tokenizer: Any) -> int:
    """The id to fill batches with: the tokenizer's pad token, else its end-of-sequence token, else 0.

    What stands at filled places is never looked at: the attention mask covers them.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
