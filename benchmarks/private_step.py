"""A private step of Fed-SB rank 64 on the 24 attention layers of a MiniLM-sized encoder (64 x 64 tokens),
beside its plain step, and beside LoRA rank 32 of the same layers, plain and by Opacus' ghost clipping.

    python benchmarks/private_step.py

The head trains in all. Ghost clipping goes backward twice, so where the frozen model takes nearly all time,
and its backward as long as its forward, a per-example step that cost nothing would take 2/3 of its time.
"""

import warnings

import torch
from common import MINILM, random_batch, random_bert, side_by_side, verdict
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from peft import LoraConfig, get_peft_model
from torch import nn

from fedsb.adapter.attached import attach, find_targets
from fedsb.adapter.bases import orthonormal_bases
from fedsb.adapter.linear import features
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.private_training import clipping_optimizer, private_step
from fedsb.federation.training import LocalTraining, make_optimizer, plain_step
from fedsb.methods import Shape, fed_sb
from fedsb.models.head import head_parameters
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.per_example import per_example_gradients
from fedsb.privacy.plan import ExamplePlan

ROWS, TOKENS, RANK, LORA_RANK, REPEATS = 64, 64, 64, 32, 9
TARGETS = ["query", "key", "value", "attention.output.dense"]
TRAINING = LocalTraining(learning_rate=1e-3, batch_size=ROWS)
PLAN = ExamplePlan(
    num_examples=10_000,
    expected_batch_size=ROWS,
    steps_per_round=1,
    rounds=1,
    clip_norm=0.1,
    noise_multiplier=1.0,
)
warnings.filterwarnings("ignore")


def losses(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def fed_sb_party() -> tuple[LocalModel, dict[str, nn.Parameter]]:
    model, generator = random_bert(MINILM), torch.Generator().manual_seed(0)
    head = head_parameters(model)
    targets = find_targets(model, TARGETS)
    start = {n: orthonormal_bases(*features(m), RANK, generator=generator) for n, m in targets.items()}
    attached = attach(model, start)
    for parameter in head.values():
        parameter.requires_grad_(True)
    shapes = {name: Shape(*features(layer.base)) for name, layer in attached.layers.items()}
    exchange = Exchange(fed_sb, shapes, RANK, 1, {n: tuple(p.shape) for n, p in head.items()})
    batch = random_batch(ROWS, TOKENS)
    party = LocalModel(attached, head, exchange, start, lambda chosen: batch, losses, torch.device("cpu"))
    model.train()
    cores = {f"{n}.R": layer.R for n, layer in attached.layers.items()}
    return party, cores | head


def lora_model() -> nn.Module:
    lora = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=TARGETS, modules_to_save=["classifier"]
    )
    return get_peft_model(random_bert(MINILM), lora).train()


def lora_step():
    model = lora_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=True)
    batch = random_batch(ROWS, TOKENS)

    def step() -> None:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()

    return step


def ghost_step():
    """Opacus' two passes: norms first, then a weighted backward."""
    model = lora_model()
    module = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=PLAN.clip_norm, use_ghost_clipping=True, loss_reduction="mean"
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.AdamW(trained, lr=1e-3, foreach=True),
        noise_multiplier=PLAN.noise_multiplier,
        max_grad_norm=PLAN.clip_norm,
        expected_batch_size=ROWS,
        loss_reduction="mean",
    )
    criterion = DPLossFastGradientClipping(module, optimizer, nn.CrossEntropyLoss(reduction="mean"))
    batch = random_batch(ROWS, TOKENS)

    def step() -> None:
        optimizer.zero_grad()
        logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        criterion(logits, batch["labels"]).backward()
        optimizer.step()

    return step


def main() -> None:
    examples = [{"input_ids": [0] * TOKENS}] * ROWS
    units = [[example] for example in examples]
    plain, plain_parameters = fed_sb_party()
    plain_optimizer = make_optimizer(plain_parameters.values(), TRAINING)
    private, parameters = fed_sb_party()
    with per_example_gradients(private.model):
        optimizer = clipping_optimizer(parameters, TRAINING, PLAN, NoiseSource(), ())
        seconds = side_by_side(
            {
                "plain": lambda: plain_step(plain, plain_parameters, plain_optimizer, [examples], TRAINING),
                "private": lambda: private_step(private, parameters, optimizer, units, TRAINING, {}),
                "LoRA": lora_step(),
                "ghost clipping on LoRA": ghost_step(),
            },
            repeats=REPEATS,
        )
    print(f"threads {torch.get_num_threads()}  " + "  ".join(f"{n} {s:.3f} s" for n, s in seconds.items()))
    verdict("private Fed-SB step / its plain step", seconds["private"] / seconds["plain"], 1.3)
    ghost = seconds["ghost clipping on LoRA"]
    verdict("private Fed-SB step / ghost clipping on LoRA r32", seconds["private"] / ghost, 0.5)
    ours, theirs = seconds["private"] - seconds["plain"], ghost - seconds["LoRA"]
    print(f"what privacy adds to a step: Fed-SB {ours:.3f} s, LoRA with ghost clipping {theirs:.3f} s")


if __name__ == "__main__":
    main()
