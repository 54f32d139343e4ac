"""Scores at the clients: the shared model, asked with a round's broadcast, on rows that no client trains on.

question:  the broadcast of the round that follows, as if the client were to train
answer:    sums over the client's own test rows that scores are made of (`tasks.totals`), and their number;
           under privacy with noise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.client import Kept, open_broadcast
from fedsb.federation.exchange import Exchange, Layout, Part
from fedsb.federation.local_model import Example, LocalModel
from fedsb.federation.server import Failed, Outcome
from fedsb.tasks.task import Measurement
from fedsb.tasks.totals import Totals

Measure = Callable[[nn.Module, Sequence[Example]], Sequence[Measurement]]
AddNoise = Callable[[Tensor], Tensor]
"""Sums -> the same with the noise that their sensitivity asks for."""


def answer_layout(totals: Totals) -> Layout:
    """The layout of every answer."""
    return Layout(tuple(totals.shapes.items()))


def client_scores(
    broadcast: bytes,
    local_model: LocalModel,
    examples: Sequence[Example],
    measure: Measure,
    totals: Totals,
    *,
    client: int,
    seed: int,
    part: Part,
    kept: Kept | None = None,
    noise: AddNoise | None = None,
) -> bytes:
    """A client's sums over these examples; zeros of none.

    Args:
        kept: what stays with this client, in methods where something does.
        noise: needed for totals that are to be noised; `measure` must then look at each example alone.

    Raises:
        UpdateRejected: the broadcast is no message for this part of this method.
        RunFailed: there is no noise for totals that need it; nothing may leave.
    """
    header, _, _ = open_broadcast(broadcast, local_model, part, seed=seed, kept=kept)
    sums = {name: torch.zeros(shape) for name, shape in totals.shapes.items()}
    if examples:
        for measured in measure(local_model.model, examples):
            sums |= {name: torch.as_tensor(measured.sums[name]) for name in sums if name in measured.sums}
    layout = answer_layout(totals)
    vector = layout.flatten(sums)
    if examples and (noise is not None or totals.sensitivity is not None):
        if noise is None:
            raise RunFailed("privacy: counts that are to be noised have no noise; they stay here")
        vector = noise(vector)
    answer = wire.Header(header.method, header.round, layout.digest, client, len(examples))
    return wire.pack(answer, vector)


def accepted_scores(
    outcome: Outcome, exchange: Exchange, totals: Totals, *, round_number: int, registered: int
) -> dict[str, float]:
    """A client's scores, of an answer that may say anything; none where it has no test rows.

    Args:
        round_number: that of the broadcast.
        registered: its test rows, as it said before the run.

    Raises:
        UpdateRejected: the answer is of no use.
    """
    if isinstance(outcome, Failed):
        raise UpdateRejected(outcome.reason)
    layout = answer_layout(totals)
    header, vector = wire.unpack(outcome.message, size=layout.size)
    expected = wire.Header(exchange.method.name, round_number, layout.digest, outcome.client)
    wire.check(header, vector, expected=expected, size=layout.size)
    if header.num_examples != registered:
        raise UpdateRejected(
            f"wrong num_examples: this client registered {registered} test rows, its scores are of "
            f"{header.num_examples}"
        )
    return _scores(layout, vector, totals, registered) if registered else {}


def _scores(layout: Layout, vector: Tensor, totals: Totals, count: int) -> dict[str, float]:
    sums = {name: value.double().numpy() for name, value in layout.unflatten(vector).items()}
    if fault := totals.fault(sums, count):
        raise UpdateRejected(f"wrong scores: {fault}")
    return totals.metrics(sums, count)
