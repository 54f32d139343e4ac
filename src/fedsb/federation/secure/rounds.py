"""A round of which the server knows the sum of the updates alone."""

from __future__ import annotations

import torch

from fedsb.errors import RunFailed
from fedsb.federation.exchange import Exchange
from fedsb.federation.secure.server import Total
from fedsb.federation.server import RoundReport, close_round, sent_before
from fedsb.federation.state import ServerState
from fedsb.methods.method import Aggregation, aggregate_one


def aggregate_total(
    state: ServerState,
    total: Total,
    exchange: Exchange,
    aggregation: Aggregation,
    *,
    factor: float,
    expected: int,
) -> tuple[ServerState, RoundReport]:
    """The state after a round with this sum.

    Args:
        factor: what makes the sum over its weight the round's change: the weight that numbers were added up
            relative to; of sums of gradients, the step.
        expected: the weights that the clients in the sum registered, together.

    Raises:
        RunFailed: the weights are others: one of these clients did not follow the protocol.
    """
    if total.weight != expected:
        raise RunFailed(
            f"round {state.round + 1}: the weights in the secure sum are {total.weight} together, those of "
            f"its {len(total.clients)} clients {expected}: one of them sent something else than its update, "
            "or masks that do not fit. Nothing was changed; resume to try again"
        )
    change = total.values * (factor / total.weight)
    before = sent_before(exchange, state.round + 1, state.vector)
    frame = exchange.frame(state.round + 1, state.vector)._replace(memory=state.memory)
    averaged = aggregate_one(aggregation, (before.double() + change).to(torch.float32), frame)
    return close_round(state, exchange, averaged, report_of(total))


def report_of(total: Total) -> RoundReport:
    """What happened in the round, as far as a server can know."""
    rejected: list[dict[str, int | str]] = [
        {"client": c, "reason": why} for c, why in sorted(total.lost.items())
    ]
    return RoundReport(
        clients=total.clients,
        rejected=[line for line in rejected if line["client"] not in total.clients],
        upload_bytes=total.up.bytes + total.keys_up.bytes,
        upload_parameters=total.up.numbers,
        loss_sum=total.loss,
        num_examples=total.weight if total.loss else 0,
    )
