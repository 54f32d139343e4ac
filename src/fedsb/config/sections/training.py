"""The section `training`: how a client trains in a round."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from fedsb.config.base import NonNegative, Positive, Section
from fedsb.config.labels import label_name


class TrainingConfig(Section):
    optimizer: Literal["adamw", "sgd"] = "adamw"
    moments: Literal["fresh", "kept", "averaged"] = "fresh"
    """AdamW's moments from round to round. fresh: anew in each. kept: each client goes on with its own.
    averaged: they travel and are averaged as what trains is, which triples both ways."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """sgd: of a round's steps; starts again with each round."""
    learning_rate: Positive = 1e-3
    epochs: Positive = 1
    """Passes over the client's data per round; fractions are allowed."""
    batch_size: PositiveInt = 32
    accumulation: PositiveInt = 1
    """Batches per optimizer step."""
    max_length: PositiveInt | Literal["auto"] = "auto"
    """Tokens per example; longer ones are cut. auto: enough for 99 of 100 training examples, and for all if
    128 will do; 128 where rows must not choose it, with privacy and over the network."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over the whole run, not again each round."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the whole run in which the rate rises from zero."""
    personal_rate: Positive = 1.0
    """Learning rate of what stays with a client (method.personal, or of its method), over learning_rate."""
    weight_decay: NonNegative = 0.0
    grad_clip: Positive | None = None
    """Largest gradient norm over all trained numbers."""
    autocast: Literal["bfloat16"] | None = None
    gradient_checkpointing: bool = False
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    """Weight of an example's loss by its class: a number for each class, or balanced: one over how often the
    class occurs in all training rows (simulated runs without privacy)."""
    group_by_length: bool = False
    """Batches of like length: less padding, so faster; the order stays random otherwise."""
    threads: PositiveInt | Literal["auto"] = "auto"
    """CPU threads that each process trains with: of another number sums differ in their last digits. auto:
    one for a base of up to five million numbers, for a larger one as many as other programs leave cores free
    when the run begins, at most OMP_NUM_THREADS; config.yaml has the number that was chosen. A node elsewhere
    takes no more than its own cores."""
    packing: bool = False
    """causal-lm, chat: put a batch's short examples into one row, where each sees itself alone. The same
    losses and steps, faster; a model that would not keep them apart is refused before the start."""

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> TrainingConfig:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum is for optimizer: sgd; set it, or leave momentum out")
        return self

    @property
    def tokens(self) -> int:
        """max_length as a number, which `auto` has become once the rows are read."""
        assert self.max_length != "auto"
        return self.max_length

    @field_validator("max_length", "threads", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value > 0 and value is not True):
            raise ValueError(f"expected a whole number above 0, or auto, found {value!r:.200}")
        return value

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights_by_name(cls, value: Any) -> Any:
        """Classes by the names that rows have for them: 1 and true are "1" and "true"."""
        if value in (None, "balanced"):
            return value
        numbers = value.values() if isinstance(value, dict) else [None]
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ValueError(
                f"expected balanced, or a number above 0 for each class, e.g. {{yes: 4, no: 1}}, found "
                f"{value!r:.200}"
            )
        return {label_name(name): number for name, number in value.items()}
