"""One local step of Fed-SB rank 64 on a MiniLM-sized encoder's query and value (batch 32 x 64 tokens),
beside the frozen model without adapter and peft's LoRA of the same rank on the same layers.

    python benchmarks/local_step.py
"""

import warnings

import torch
from common import MINILM, example_losses, random_batch, random_bert, side_by_side, verdict
from peft import LoraConfig, get_peft_model

from fedsb.adapter.attached import attach, find_targets
from fedsb.adapter.bases import orthonormal_bases
from fedsb.adapter.linear import features

RANK, TARGETS, REPEATS = 64, ["query", "value"], 15
warnings.filterwarnings("ignore")


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=True)


def with_fed_sb() -> torch.nn.Module:
    model, generator = random_bert(MINILM), torch.Generator().manual_seed(0)
    targets = find_targets(model, TARGETS)
    attach(model, {n: orthonormal_bases(*features(m), RANK, generator=generator) for n, m in targets.items()})
    return model


def main() -> None:
    batch = random_batch(32, 64)
    plain = random_bert(MINILM).requires_grad_(False)
    fed_sb = with_fed_sb()
    lora = get_peft_model(random_bert(MINILM), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    optimizers = {id(m): optimizer_of(m) for m in (fed_sb, lora)}

    def input_gradient_only() -> None:
        embedded = plain.bert.embeddings.word_embeddings(batch["input_ids"]).detach().requires_grad_(True)
        logits = plain(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
        torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()

    def step(model: torch.nn.Module) -> None:
        optimizers[id(model)].zero_grad()
        example_losses(model, batch).mean().backward()
        optimizers[id(model)].step()

    seconds = side_by_side(
        {"frozen": input_gradient_only, "fed-sb": lambda: step(fed_sb), "peft lora": lambda: step(lora)},
        repeats=REPEATS,
    )
    print(f"threads {torch.get_num_threads()}  " + "  ".join(f"{n} {s:.3f} s" for n, s in seconds.items()))
    fed_sb_seconds = seconds["fed-sb"]
    verdict(
        "Fed-SB step / frozen forward + input-gradient backward", fed_sb_seconds / seconds["frozen"], 1.10
    )
    verdict("Fed-SB step / peft LoRA step, same rank", fed_sb_seconds / seconds["peft lora"], 1.0)


if __name__ == "__main__":
    main()
