"""The server: its state, what it broadcasts, and one round as a function (state, updates) -> state.

It needs neither data nor the base model, holds one accumulator, and takes updates as they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fedsb import wire
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.layout import Layout
from fedsb.methods import Method

Weighting = Literal["examples", "uniform"]


@dataclass(frozen=True)
class ServerState:
    """All that changes between rounds: finished rounds, and the vector to broadcast next."""

    round: int
    vector: Float[Tensor, "size"]


@dataclass(frozen=True)
class Arrived:
    """A client's answer, as it came."""

    client: int
    message: bytes


@dataclass(frozen=True)
class Failed:
    """A client that did not answer, and why."""

    client: int
    reason: str


Outcome = Arrived | Failed


@dataclass
class RoundReport:
    """What happened in one round."""

    clients: list[int] = field(default_factory=list)
    rejected: list[dict[str, int | str]] = field(default_factory=list)
    upload_bytes: int = 0
    upload_parameters: int = 0
    loss_sum: float = 0.0
    num_examples: int = 0

    @property
    def train_loss(self) -> float | None:
        """Mean of the clients' declared losses, weighted by examples."""
        return self.loss_sum / self.num_examples if self.num_examples else None


def broadcast(state: ServerState, method: Method, layout: Layout) -> bytes:
    """The message that opens the next round."""
    return wire.pack(wire.Header(method.name, state.round + 1, layout.digest), state.vector)


def aggregate(
    state: ServerState, outcomes: Iterable[Outcome], method: Method, layout: Layout, *, weighting: Weighting
) -> tuple[ServerState, RoundReport]:
    """Take in the cohort's outcomes one at a time and close the round.

    A client that failed, or whose update is refused, is left out and named in the report.

    Raises:
        RunFailed: no update could be used; the state given is still the current one.
    """
    report = RoundReport()
    accumulator = method.aggregation.start(layout.size)
    for outcome in outcomes:
        try:
            header, vector = _accept(outcome, state, method, layout, report)
        except UpdateRejected as reason:
            report.rejected.append({"client": outcome.client, "reason": str(reason)})
            continue
        weight = float(header.num_examples) if weighting == "examples" else 1.0
        accumulator = method.aggregation.add(accumulator, vector, weight)
        _note(report, outcome.client, header)
    if not report.clients:
        raise RunFailed(_nobody_left(state.round + 1, report))
    return ServerState(state.round + 1, method.aggregation.finish(accumulator)), report


def _accept(
    outcome: Outcome, state: ServerState, method: Method, layout: Layout, report: RoundReport
) -> tuple[wire.Header, Tensor]:
    if isinstance(outcome, Failed):
        raise UpdateRejected(outcome.reason)
    report.upload_bytes += len(outcome.message)
    header, vector = wire.unpack(outcome.message)
    report.upload_parameters += vector.numel()
    expected = wire.Header(method.name, state.round + 1, layout.digest, outcome.client)
    wire.check(header, vector, expected=expected, size=layout.size)
    if header.num_examples < 1:
        raise UpdateRejected(f"wrong num_examples: expected at least 1, found {header.num_examples}")
    return header, vector


def _note(report: RoundReport, client: int, header: wire.Header) -> None:
    report.clients.append(client)
    if header.train_loss is not None and math.isfinite(header.train_loss):
        report.loss_sum += header.train_loss * header.num_examples
        report.num_examples += header.num_examples


def _nobody_left(number: int, report: RoundReport) -> str:
    reasons = "; ".join(f"client {r['client']}: {r['reason']}" for r in report.rejected[:3])
    more = f" and {len(report.rejected) - 3} more" if len(report.rejected) > 3 else ""
    return f"round {number}: no client's update could be used ({reasons}{more})"
