"""A client's part of one step over all clients' rows: the sum of clipped gradients, for a secure sum.

    broadcast -> Poisson batch of units -> one gradient for each -> clipped -> summed in fp64 -> bytes

Nothing here is noised: the sum is rounded and gets this client's share of the noise as it is added up
(`secure.noise_shares`), and no party but this one ever sees it as it is. The server takes the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedsb.federation import wire
from fedsb.federation.client import begin_update
from fedsb.federation.dropout import without_dropout
from fedsb.federation.local_model import Example, LocalModel
from fedsb.federation.private_training import check_examples, unit_batches, unit_gradients, units_of
from fedsb.federation.training import ClientFailed, LocalTraining, OnStep
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.per_example import per_example_gradients
from fedsb.privacy.plan import ExamplePlan


def client_sum(
    broadcast: bytes,
    local_model: LocalModel,
    examples: Sequence[Example],
    training: LocalTraining,
    plan: ExamplePlan,
    *,
    coins: Keystream,
    client: int,
    seed: int,
    registered: int | None = None,
    on_step: OnStep = lambda num_examples: None,
) -> bytes:
    """One client's sum in one round as a message of fp64 numbers, laid out as an upload is.

    Args:
        coins: as of `train_privately`. registered: as of `client_update`.

    Raises:
        UpdateRejected: the broadcast is no message for this client.
        ClientFailed: there are no examples, or the time is up.
        RunFailed: the model drops or draws something by itself.
    """
    begun = begin_update(broadcast, local_model, examples, seed=seed)
    number, exchange = begun.header.round, local_model.exchange
    deadline = None if training.timeout_seconds is None else time.monotonic() + training.timeout_seconds
    (batch,) = plan.batches(coins, number)
    total = clipped_sum(local_model, begun.parameters, examples, training, plan, batch)
    on_step(plan.expected_batch_size)  # how many there were is nobody's business
    if deadline is not None and time.monotonic() > deadline:
        raise ClientFailed(f"timed out after {training.timeout_seconds:g} s")
    layout = exchange.up(number, exchange.whole)
    count = len(examples) if registered is None else registered
    header = wire.Header(begun.header.method, number, layout.digest, client, count)
    vector = torch.cat([total[name].reshape(-1) for name, _ in layout.entries])
    return wire.pack(header, vector, torch.float64)


def clipped_sum(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    training: LocalTraining,
    plan: ExamplePlan,
    batch: Sequence[int],
) -> dict[str, Tensor]:
    """The sum of the batch's units' gradients by parameter, in fp64.

    Guarantees: one unit, present or blanked, moves all of it together by at most the plan's clip norm in L2,
    up to fp64's rounding; as in `train_privately`, its gradient depends on no other.
    """
    units = units_of(examples, plan)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    with without_dropout(local_model.model):
        check_examples(local_model, examples, training)
        with per_example_gradients(local_model.model):
            for group in unit_batches([units[i] for i in batch], training):
                found = unit_gradients(local_model, parameters, group, training, {})
                for name, of_group in _clipped(found, plan.clip_norm).items():
                    total[name] += of_group
    return total


def _clipped(gradients: Mapping[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """By parameter, the sum of gradients, units first, each scaled down to the norm over all parameters."""
    exact, by_row = torch.float64, gradients.values()
    norms = torch.stack([g.flatten(1).norm(dim=1, dtype=exact) for g in by_row]).norm(dim=0)
    factors = (clip_norm / norms).clamp(max=1.0)
    return {name: torch.tensordot(factors, g.to(exact), dims=1) for name, g in gradients.items()}
