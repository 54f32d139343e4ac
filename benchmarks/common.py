"""Shared by the benchmarks: random models of known sizes, and side-by-side timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BERT_BASE = MINILM | {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}


def random_bert(size: Mapping[str, int], *, seed: int = 0) -> BertForSequenceClassification:
    """A BERT of that size with random weights, in eval mode."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(vocab_size=30522, num_labels=2, **size)).eval()


def random_batch(rows: int, tokens: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids without padding, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30000, (rows, tokens), generator=generator)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def example_losses(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each row."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def save_random_model(folder: Path, size: Mapping[str, int]) -> None:
    """A model folder with a word-level tokenizer, as `model.path` wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{i}": i + 4 for i in range(30000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    random_bert(size).bert.save_pretrained(folder)


def side_by_side(functions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each function, called in turn so that all meet the same conditions."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def verdict(what: str, value: float, limit: float) -> None:
    """One line: the ratio, its target, and whether it holds."""
    print(f"{what:<66} {value:7.3f}   target <= {limit:g}   {'ok' if value <= limit else 'MISSED'}")
