"""Fed-SB from its pieces, top to bottom: load, start, then rounds of broadcast, train, average; evaluate.

    python examples/fed_sb.py recipe.yaml out        the same adapter as `fedsb run recipe.yaml --out ...`

Every target layer computes W0 x + B R A x. W0 (out, in) is the base model's weight; B (out, r) and A (r, in)
are orthonormal and frozen; each client trains a copy of the small core R (r, r), and the server averages the
cores. B and A are the same everywhere, so B mean(R_i) A is exactly the mean of the clients' updates B R_i A,
and r^2 numbers travel per layer, whatever the number of clients.

What `fedsb run` adds is left out: messages as bytes and what is refused of them, privacy, checkpoints,
reports, sampled cohorts, other methods. Source: Singhal et al. 2025, arXiv 2502.15436; the start is that of
LoRA-SB, Ponkshe et al. 2024, arXiv 2411.19557.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from fedsb import RunConfig
from fedsb.adapter.attached import fold
from fedsb.federation.start.initialize import start_factors
from fedsb.federation.training import train
from fedsb.methods import by_name
from fedsb.models.head import TASK_TYPES
from fedsb.models.peft_folder import write_adapter
from fedsb.runner.arguments import local_training, start_of
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import local_model_of, prepare_base
from fedsb.runner.prepared import calibration_of

Numbers = dict[str, Tensor]
"""What trains, by name: `layer.R` (1, r, r) of each target layer, and the task head's weights."""


def fed_sb(config: RunConfig, folder: Path) -> dict[str, float]:
    """Train as the config says and leave a PEFT adapter in the folder; the final metrics on the test rows."""
    # Load: rows and who holds them, the frozen base model, its target layers and its fresh task head.
    data = prepare_data(config)
    base = prepare_base(config, data)

    # Start: the clients warm up the head, then send factors of one gradient over a few of their examples. The
    # best rank-r approximation of the update it makes is U S V^T: B = U, A = V^T, and R = S to begin with.
    method, start = by_name("fed-sb"), start_of(config, data.parts)
    calibration = calibration_of(data, base, start, method, base.task_head)
    factors = start_factors(
        base.model, base.targets, base.task_head, method, start, calibration, num_clients=len(data.parts)
    ).factors
    local = local_model_of(config, data, base, factors)  # the adapter is over the base's layers from here on
    trained = {f"{name}.R": layer.R for name, layer in local.attached.layers.items()} | base.task_head
    shared: Numbers = {name: parameter.detach().clone() for name, parameter in trained.items()}

    training, seed = local_training(config), config.seed
    for number in range(1, config.federation.rounds + 1):
        total: Numbers = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in shared.items()}
        for client, indices in enumerate(data.parts):
            load(trained, shared)  # broadcast
            examples = [data.train[i] for i in indices]
            loss = train(local, trained, examples, training, round_number=number, client=client, seed=seed)
            for name, parameter in trained.items():  # upload and average: a running weighted sum
                total[name].add_(parameter.detach(), alpha=len(examples))
            print(f"round {number}, client {client}: {len(examples)} examples, loss {loss:.4f}")
        shared = {name: (t / len(data.train)).float() for name, t in total.items()}

    # Evaluate the averaged model, and fold B R A into ordinary LoRA factors that peft can load.
    load(trained, shared)
    metrics = data.task.evaluate(base.model, data.test, batch_size=config.evaluation.batch_size)
    kind = TASK_TYPES[config.task.model_class]
    pairs = fold(local.attached)
    write_adapter(folder, pairs, base_model=config.model.path, task_type=kind, head=base.task_head)
    return metrics


def load(parameters: dict[str, torch.nn.Parameter], values: Numbers) -> None:
    """Put the values into the parameters, in place."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


if __name__ == "__main__":
    print(fed_sb(RunConfig.from_yaml(sys.argv[1]), Path(sys.argv[2])))
