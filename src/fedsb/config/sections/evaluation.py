"""The section `evaluation`: what is scored, when, and how answers are generated."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from fedsb.config.base import NonNegative, Section
from fedsb.config.sections.data import Preparation


class BenchmarkConfig(Section):
    """A data set to score on after the run, asked with the task's own prompt."""

    data: str
    """Hub id or file."""
    score: Literal["exact", "gsm8k", "math", "choice", "likelihood", "text"]
    """How answers are marked. gsm8k: the number in them; math: the formula; choice: the choice named (formats
    of LLM-Adapters); likelihood: the likeliest of the choices the prompt offers, nothing being generated;
    text: BLEU and others, rows of one prompt being its references; exact: the whole text."""
    prepare: Preparation | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    """What the task calls a column -> what it is called in this data."""
    limit: PositiveInt | None = None
    """Use the first so many rows."""
    max_new_tokens: PositiveInt | None = None
    """null: task.max_new_tokens."""


class GenerationConfig(Section):
    """How benchmarks are answered."""

    engine: Literal["transformers", "vllm"] = "transformers"
    temperature: NonNegative = 0.0
    """0: greedy; else sampled, from the run's seed."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: PositiveInt | None = None
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts at which an answer ends."""
    beams: PositiveInt = 1
    length_penalty: float = 1.0
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_way(self) -> GenerationConfig:
        if self.beams > 1 and (self.temperature > 0 or self.engine == "vllm"):
            raise ValueError("beams are searched by transformers without sampling; set beams: 1")
        return self


class EvaluationConfig(Section):
    every: PositiveInt | None = 1
    """Rounds between evaluations; the first and the last are always evaluated. null: never; a server of
    clients elsewhere then reads no test rows, and no base weights unless the method needs them."""
    batch_size: PositiveInt = 64
    generate: PositiveInt | None = None
    """causal-lm, chat: score exact match of greedy answers on the first so many test rows."""
    at_clients: bool | None = None
    """Score the model at each client, too, on rows of its own; the server gets counts alone. null: where
    data.client_test sets rows aside. With privacy see privacy.score_noise_multiplier."""
    baselines: list[Literal["local", "pooled"]] = Field(default_factory=list)
    """at_clients: models to compare with on the same rows. local: what each client trains alone, for as many
    rounds; pooled: what all training rows train in one place (simulated runs)."""
    benchmarks: dict[str, BenchmarkConfig] = Field(default_factory=dict)
    """causal-lm, chat: what `fedsb evaluate --run` scores the finished run on, by name."""
    generation: GenerationConfig = GenerationConfig()

    @field_validator("benchmarks")
    @classmethod
    def _names_are_file_names(cls, value: dict[str, BenchmarkConfig]) -> dict[str, BenchmarkConfig]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"{name!r} cannot name a benchmark: use letters, digits, - and _")
        return value
