"""How long one example's gradient is, at a run's start and at its end: what a clip norm must suit.

    python studies/gradient_norms.py RUN [RUN ...]

Each RUN is a folder of `fedsb run`. Looks at 256 of its training rows without noise: what it prints is not
private, so do this with rows that may be shown. A tenth, half and nine tenths of the examples have shorter
gradients than the three numbers; beside them the head's part, and the length of the mean over examples.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from fedsb.config import RunConfig
from fedsb.federation.local_model import Example, LocalModel, load_state
from fedsb.federation.private_training import physical_batches
from fedsb.federation.training import autocast, to_device
from fedsb.privacy.per_example import per_example_gradients
from fedsb.runner.arguments import local_training
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import local_model_of, prepare_base
from fedsb.tasks.task import length_of

ROWS = 256


def gradients(local_model: LocalModel, examples: list[Example], config: RunConfig) -> dict[str, Tensor]:
    """By trained parameter, (examples, numbers)."""
    training = local_training(config)
    named = {n: p for n, p in local_model.model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    with per_example_gradients(local_model.model):
        for group in physical_batches(examples, training.batch_size, length_of):
            with autocast(training, local_model.device):
                batch = to_device(local_model.collate(group), local_model.device)
                loss = local_model.losses(local_model.model, batch).sum()
            loss.backward()
            for name, parameter in named.items():
                rows[name].append(parameter.grad_sample.float().flatten(1))
                parameter.grad = parameter.grad_sample = None
    return {name: torch.cat(found) for name, found in rows.items()}


def line(found: dict[str, Tensor], head: list[str]) -> str:
    """Markdown cells: quantiles of the whole, quantiles of the head's part, length of the mean."""

    def quantiles(names: list[str]) -> str:
        norms = torch.cat([found[name] for name in names], 1).norm(dim=1)
        return " ".join(f"{q:.2f}" for q in norms.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist())

    mean = torch.cat([g.mean(0) for g in found.values()]).norm()
    return f"{quantiles(list(found))} | {quantiles(head) if head else 'none'} | {mean:.2f}"


def main(folders: list[Path]) -> None:
    print("| run | all | head | mean |\n|---|---|---|---|")
    for folder in folders:
        config = RunConfig.from_yaml(folder / "config.yaml")
        data = prepare_data(config)
        base, saved = prepare_base(config, data), load_checkpoint(folder / "checkpoint")
        assert saved is not None, f"{folder}: no checkpoint"
        local_model = local_model_of(config, data, base, saved.factors)
        head = [
            n for n, p in local_model.model.named_parameters() if any(p is h for h in base.task_head.values())
        ]
        local_model.model.train()
        print(f"| {folder}, start | {line(gradients(local_model, data.train[:ROWS], config), head)} |")
        state, number = saved.state, max(1, saved.state.round)
        load_state(local_model, state.vector, state.base.total, round_number=number, seed=config.seed)
        found = gradients(local_model, data.train[:ROWS], config)
        print(f"| {folder}, end | {line(found, head)} |", flush=True)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
