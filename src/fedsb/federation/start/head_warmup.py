"""A fresh classification head's short training on a frozen base.

The gradient through an untrained head is mostly noise, so the update estimate is better after this.
The base runs once over the calibration examples; the head then trains on what the base gave out. It is
federated like everything else: each client trains on its own examples, the server averages the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsb.federation import wire
from fedsb.federation.exchange import Layout
from fedsb.federation.local_model import Batch, Losses
from fedsb.federation.secure.here import secure_sum_here
from fedsb.federation.secure.server import Total, traffic_of
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules
from fedsb.federation.start.from_gradients import Calibration, only_these_train
from fedsb.federation.start.robust import Head, Robust, average_heads
from fedsb.federation.start.settings import Warmup
from fedsb.federation.traffic import Tally, Traffic
from fedsb.models.head import base_name, base_of
from fedsb.tasks.task import model_inputs

Answers = Iterable[tuple[Head, int]]
"""Trained heads, each with the bytes of the message it came in."""
AskForHeads = Callable[[int], tuple[int, Answers]]
"""Round -> the bytes of its question to one client, and the answers as they come."""
Cached = tuple[Batch, Any]
"""A batch and the base model's output for it."""


def warm_up(
    head: Mapping[str, nn.Parameter], rounds: int, clients: int, ask: AskForHeads, robust: Robust | None
) -> list[Traffic]:
    """Federated averaging of the head alone, in place; its measured traffic."""
    layout, down, up = Layout.of(head), Tally(), Tally()

    def counted(answers: Answers) -> Iterator[Head]:
        for answer, size in answers:
            up.add(size, layout.size)
            yield answer

    for number in range(1, rounds + 1):
        before = layout.flatten(head)
        size, answers = ask(number)
        down.add(size, layout.size, messages=clients)
        layout.copy_into(head, average_heads(counted(answers), before, layout, robust))
    return [down.entry("head warm-up", "down", clients), up.entry("head warm-up", "up", clients)]


SumOfHeads = Callable[[int, Tensor], Total]
"""(round, the head that was sent) -> the secure sum of how far each client's went."""


def warm_up_securely(
    head: Mapping[str, nn.Parameter], rounds: int, clients: int, heaviest: int, sum_of: SumOfHeads
) -> list[Traffic]:
    """As `warm_up`, of heads that the server knows as a sum alone."""
    layout, totals = Layout.of(head), []
    for number in range(1, rounds + 1):
        before = layout.flatten(head)
        totals.append(total := sum_of(number, before))
        layout.copy_into(head, (before + total.values * (heaviest / total.weight)).float())
    return traffic_of(totals, 0, clients, "head warm-up", "head warm-up")


def warm_up_here(
    model: nn.Module,
    head: Mapping[str, nn.Parameter],
    warmup: Warmup,
    batch_size: int,
    calibration: Calibration,
    robust: Robust | None = None,
    secure: Rules | None = None,
) -> list[Traffic]:
    """The warm-up of clients in this process, over cached base outputs; public examples travel nowhere."""
    layout, losses = Layout.of(head), calibration.losses
    cached = {
        client: cache_base_outputs(model, calibration.batches_of(indices, batch_size))
        for client, indices in calibration.draw.items()
    }

    def trained(client: int, before: Tensor) -> Tensor:
        layout.copy_into(head, before)
        train_head(model, head, cached[client], losses, warmup)
        return layout.flatten(head)

    if secure is not None and not calibration.public:
        weights = {client: len(indices) for client, indices in calibration.draw.items()}
        sum_of = partial(_secure_sum_of_heads, secure, weights, trained, layout)
        return warm_up_securely(head, warmup.rounds, len(weights), max(weights.values()), sum_of)
    size = len(_message(layout, layout.flatten(head)))

    def answers(before: Tensor) -> Iterator[tuple[Head, int]]:
        for client, indices in calibration.draw.items():
            yield Head(client, trained(client, before), len(indices)), size

    traffic = warm_up(
        head, warmup.rounds, len(cached), lambda number: (size, answers(layout.flatten(head))), robust
    )
    return [] if calibration.public else traffic


def _secure_sum_of_heads(
    rules: Rules,
    weights: Mapping[int, int],
    trained: Callable[[int, Tensor], Tensor],
    layout: Layout,
    number: int,
    before: Tensor,
) -> Total:
    def summand_of(client: int) -> Summand:
        return Summand(trained(client, before) - before, weights[client])

    return secure_sum_here(
        rules,
        "warm-up",
        number,
        summand_of,
        [*weights],
        layout.size,
        heaviest=max(weights.values()),
        question=_message(layout, before),
        question_size=layout.size,
    )


def _message(layout: Layout, head: Tensor) -> bytes:
    """The head as it would be sent to a client here, or from it."""
    return wire.pack(wire.Header("head-warm-up", 1, layout.digest, 0), head)


def cache_base_outputs(model: nn.Module, batches: Sequence[Batch]) -> list[Cached]:
    """One forward pass of the frozen base over the batches, its outputs kept."""
    outputs: list[Any] = []
    model.eval()
    with (
        base_of(model).register_forward_hook(lambda module, args, output: outputs.append(output)),
        torch.no_grad(),
    ):
        for batch in batches:
            model(**model_inputs(model, batch))
    return list(zip(batches, outputs, strict=True))


def train_head(
    model: nn.Module,
    head: Mapping[str, nn.Parameter],
    cached: Sequence[Cached],
    losses: Losses,
    warmup: Warmup,
) -> None:
    """Full-batch AdamW on the head alone, in place, without dropout."""
    optimizer = torch.optim.AdamW(list(head.values()), lr=warmup.learning_rate, weight_decay=0.0)
    num_examples = sum(len(batch["labels"]) for batch, _ in cached)
    model.eval()
    with only_these_train(model, head), _replayed_base(model) as replay:
        for _ in range(warmup.steps):
            optimizer.zero_grad()
            for batch, output in cached:
                replay(output)
                (losses(model, batch).sum() / num_examples).backward()
            optimizer.step()
    optimizer.zero_grad()


class _Replay(nn.Module):
    """Stands in for the base model and gives back a kept output."""

    output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


@contextmanager
def _replayed_base(model: nn.Module) -> Iterator[Callable[[Any], None]]:
    name = base_name(model)
    base, stand_in = model.get_submodule(name), _Replay()
    model.set_submodule(name, stand_in)
    try:
        yield lambda output: setattr(stand_in, "output", output)
    finally:
        model.set_submodule(name, base)
