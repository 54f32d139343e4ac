"""A few greedy answers of the final model, for people to read: samples.jsonl in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fedsb.common.files import write_jsonl
from fedsb.config import RunConfig
from fedsb.config.sections import CausalLmConfig
from fedsb.runner.prepare_data import Data
from fedsb.tasks import generate_texts

MOST = 8


def write_samples(folder: Path, config: RunConfig, data: Data, model: nn.Module) -> None:
    """Prompt, answer and expected response of the first test rows whose prompts differ; only where
    evaluation.generate is set."""
    wanted = config.evaluation.generate
    if not isinstance(config.task, CausalLmConfig) or wanted is None or config.evaluation.every is None:
        return
    distinct: dict[tuple[int, ...], Any] = {}
    for example in data.test:
        distinct.setdefault(tuple(example["prompt_ids"]), example)
    examples = list(distinct.values())[: min(wanted, MOST)]
    prompts = [example["prompt_ids"] for example in examples]
    answers = generate_texts(
        model, data.tokenizer, prompts, max_new_tokens=config.task.max_new_tokens, batch_size=MOST
    )
    decoded = [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
    rows = zip(decoded, answers, examples, strict=True)
    write_jsonl(
        folder / "samples.jsonl", [{"prompt": p, "answer": a, "expected": e["response"]} for p, a, e in rows]
    )
