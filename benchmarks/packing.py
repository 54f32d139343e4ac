"""Forward and backward of a batch of 16, packed and not, on a small Llama: lengths that differ within a batch
(20 to 448 tokens, most of them short), and lengths that hardly do (300 to 448).

    python benchmarks/packing.py
"""

import random
from types import SimpleNamespace
from typing import Any

import torch
from common import side_by_side, verdict
from transformers import LlamaConfig, LlamaForCausalLM

from fedsb.tasks.answers import answer_task
from fedsb.tasks.packing import packed

ROWS, REPEATS, VOCABULARY = 16, 5, 2000
SIZE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
LENGTHS = {"mixed": (20, 20, 40, 40, 80, 80, 160, 448), "even": (300, 340, 380, 420, 448)}
TARGETS = {"mixed": 0.6, "even": 1.05}


def examples_of(lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    rng = random.Random(0)
    ids = [[rng.randrange(VOCABULARY) for _ in range(rng.choice(lengths))] for _ in range(ROWS)]
    return [{"input_ids": row, "labels": row} for row in ids]


def main() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=448, **SIZE)).train()
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    apart = answer_task(
        tokenizer, lambda rows, source: [], questions=lambda rows, source: [], max_new_tokens=1
    )
    for name, lengths in LENGTHS.items():
        examples = examples_of(lengths)

        def step(task: Any, examples: list[dict[str, Any]] = examples) -> None:
            task.losses(model, task.collate(examples)).mean().backward()
            model.zero_grad()

        seconds = side_by_side(
            {"apart": lambda: step(apart), "packed": lambda: step(packed(apart, tokenizer))}, repeats=REPEATS
        )
        print(f"{name}: " + "  ".join(f"{n} {s:.3f} s" for n, s in seconds.items()))
        verdict(f"packed / apart, {name} lengths", seconds["packed"] / seconds["apart"], TARGETS[name])


if __name__ == "__main__":
    main()
