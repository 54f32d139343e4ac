"""The second exchange of a round, for methods that have one: a question made of the first answers' mean.

    server:  mean of the first answers -> question -> to the clients whose answers were used
    client:  the factors as it trained them, the question -> second answer
    server:  mean of the second answers -> the round's result

Between the two a client keeps its factors, in `kept`; whoever lost them has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from fedsb.common.printable import printable
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.server import Outcome, RoundReport, Weighting, accept
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Traffic
from fedsb.federation.training import ClientFailed
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.method import Averaged, Named, Upload

AskAgain = Callable[[Sequence[int], bytes], Iterable[Outcome]]
"""(clients, the question) -> what came of it."""


def remembered(local_model: LocalModel, round_number: int) -> dict[str, Tensor]:
    """What a client keeps of its first answer."""
    return {
        f"round {round_number} {layer}.{name}": parameter.detach().cpu().clone()
        for layer, part in local_model.attached.layers.items()
        for name, parameter in part.factors().items()
    }


def forget(kept: dict[str, Tensor]) -> None:
    """Drop what was kept of first answers."""
    for name in [name for name in kept if name.startswith("round ")]:
        del kept[name]


def second_answer(
    question: bytes, exchange: Exchange, kept: Mapping[str, Tensor], *, client: int, num_examples: int
) -> bytes:
    """A client's answer to the second question of a round.

    Args:
        kept: what it kept of its first answer.

    Raises:
        UpdateRejected: the question is none of this method, or there was no first answer in this round.
        ClientFailed: a number is too large for its upload.
    """
    rule, layout = exchange.method.follow_up, exchange.question()
    if rule is None:
        raise UpdateRejected(f"{exchange.method.name} has one exchange in a round")
    header, vector = wire.unpack(question, size=layout.size)
    number = header.round
    wire.check(
        header,
        vector,
        expected=wire.Header(exchange.method.name, number, layout.digest, exchange=2),
        size=layout.size,
    )
    factors = _by_layer(kept, f"round {number} ")
    if set(factors) != set(exchange.layers):
        raise UpdateRejected("it gave no first answer in this round, or what it kept of it was lost")
    asked, answers = _by_layer(layout.unflatten(vector)), exchange.second_answers()
    named = {
        f"{layer}.{name}": value
        for layer, part in asked.items()
        for name, value in rule.answer(factors[layer], part).items()
    }
    sent = wire.Header(exchange.method.name, number, answers.digest, client, num_examples, exchange=2)
    try:
        return wire.pack(sent, answers.flatten(named), exchange.upload_dtype)
    except wire.Overflow as reason:
        raise ClientFailed(str(reason)) from None


def after_second_exchange(
    first: Averaged,
    report: RoundReport,
    *,
    state: ServerState,
    exchange: Exchange,
    ask: AskAgain,
    weighting: Weighting,
    registered: Mapping[int, int] | None = None,
) -> Averaged:
    """The round's result, of the mean of the first answers and who gave them.

    Clients that fail now leave `report.clients`; the traffic is in `report.second`.

    Raises:
        RunFailed: nobody answered twice.
    """
    rule, layout = exchange.method.follow_up, exchange.question()
    assert rule is not None
    means, current = _by_layer(first.tensors), _by_layer(exchange.down(exchange.rank).unflatten(state.vector))
    asked = {layer: rule.ask(means[layer]) for layer in exchange.layers}
    header = wire.Header(exchange.method.name, state.round + 1, layout.digest, exchange=2)
    question, cohort = wire.pack(header, layout.flatten(_flat(asked))), list(report.clients)
    down, up = len(question) * len(cohort), layout.size * len(cohort)
    report.second.append(Traffic(state.round + 1, "second question", "down", len(cohort), down, up))
    outcomes = ask(cohort, question)
    second = _by_layer(_means(outcomes, state, exchange, report, weighting, registered))
    found = {layer: rule.finish(asked[layer], second[layer], current[layer]) for layer in exchange.layers}
    return first._replace(tensors={**first.tensors, **_flat(found)})


def _means(
    outcomes: Iterable[Outcome],
    state: ServerState,
    exchange: Exchange,
    report: RoundReport,
    weighting: Weighting,
    registered: Mapping[int, int] | None,
) -> dict[str, Tensor]:
    """Of the second answers of those whose first were used."""
    layout, arrived, cohort = exchange.second_answers(), RoundReport(), len(report.clients)
    frame = exchange.frame(state.round + 1, state.vector)._replace(answer=dict(layout.entries))
    total, missing = WeightedSum(frame), list(report.clients)
    for outcome in outcomes:
        try:
            if outcome.client not in missing:
                raise UpdateRejected("it was not asked again, or answered before")
            header, vector = accept(outcome, state, exchange, layout, arrived, registered)
        except UpdateRejected as reason:
            report.rejected.append(
                {"client": outcome.client, "reason": printable(f"second answer: {reason}")}
            )
            continue
        missing.remove(outcome.client)
        weight = float(header.num_examples) if weighting == "examples" else 1.0
        total.add(Upload(layout.view(vector), vector, weight, client=outcome.client))
    sizes = arrived.upload_bytes, arrived.upload_parameters
    report.second.append(Traffic(state.round + 1, "second answers", "up", cohort, *sizes))
    report.clients = [client for client in report.clients if client not in missing]
    if not report.clients:
        raise RunFailed(f"round {state.round + 1}: nobody answered the second question")
    return total.mean()


def _by_layer(named: Named, start: str = "") -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if name.startswith(start):
            layer, _, factor = name.removeprefix(start).rpartition(".")
            found.setdefault(layer, {})[factor] = tensor
    return found


def _flat(nested: Mapping[str, Named]) -> dict[str, Tensor]:
    return {f"{layer}.{name}": value for layer, part in nested.items() for name, value in part.items()}
