"""The sums that a mixture's gate is made of: asked once of every client, added by the server.

    question:  the experts' mean, as one core: under its own expert a row would show which one that was, and
               the gate would learn to see that in place of the row
    answer:    by layer, for each of its experts how many q and their sum, over all of them the sum of q q'

Sums add, so the gate is that of all rows in one place. With one gate over the base's states there are no
layers and the question holds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedsb.adapter.routing import (
    Statistics,
    base_states,
    noting,
    routing_of,
    tell,
)
from fedsb.common.printable import printable
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange, Layout, NamedShape
from fedsb.federation.experts import ExpertState
from fedsb.federation.local_model import Batch, Example, LocalModel
from fedsb.federation.server import Failed, Outcome
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Tally
from fedsb.federation.training import LocalTraining, autocast, to_device
from fedsb.tasks.task import batches_by_length, evaluating, length_of

POOLED = "base"
"""In place of a layer: the states that one gate for all layers looks at."""


def _sizes(exchange: Exchange) -> dict[str, int]:
    """What gates look at, and how many numbers each q has."""
    assert exchange.experts is not None
    if exchange.experts.pooled:
        return {POOLED: exchange.experts.pooled}
    return dict.fromkeys(exchange.layers, exchange.rank)


def answer_layout(exchange: Exchange, experts: Sequence[int]) -> Layout:
    """The layout of the answer of a client with these experts."""
    entries: list[NamedShape] = []
    for name, size in _sizes(exchange).items():
        entries += [
            (f"{name}.counts", (len(experts),)),
            (f"{name}.sums", (len(experts), size)),
            (f"{name}.moment", (size * (size + 1) // 2,)),
        ]
    return Layout(tuple(entries))


def question_layout(exchange: Exchange) -> Layout:
    """The layout of the question, which is the same for every client."""
    assert exchange.experts is not None
    return Layout(()) if exchange.experts.pooled else exchange.cores((0,))


def statistics_question(state: ServerState, exchange: Exchange) -> bytes:
    """What every client is asked with."""
    assert state.experts is not None
    layout, usage = question_layout(exchange), state.experts.usage
    named = exchange.down(exchange.rank).unflatten(state.vector)
    means = {name: torch.einsum("e,eoi->oi", usage, named[name])[None] for name, _ in layout.entries}
    return wire.pack(wire.Header(exchange.method.name, state.round, layout.digest), layout.flatten(means))


# A client's side


def client_statistics(
    question: bytes,
    local_model: LocalModel,
    examples: Sequence[Example],
    training: LocalTraining,
    *,
    client: int,
    experts: tuple[int, ...],
    registered: int | None = None,
) -> bytes:
    """One client's sums over its rows, all under the one core that it was sent.

    Raises:
        UpdateRejected: the question is none for this method's layers.
    """
    exchange = local_model.exchange
    header, vector = wire.unpack(question)
    layout = question_layout(exchange)
    expected = wire.Header(exchange.method.name, header.round, layout.digest)
    wire.check(header, vector, expected=expected, size=layout.size)
    for name, core in layout.unflatten(vector).items():
        local_model.attached.layers[name.removesuffix(".R")].set_factor("R", core)
    sums = gathered(local_model, examples, training, experts)
    layout = answer_layout(exchange, experts)
    count = len(examples) if registered is None else registered
    answer = wire.Header(header.method, header.round, layout.digest, client, num_examples=count)
    return wire.pack(answer, layout.flatten({n: t for name, s in sums.items() for n, t in _packed(name, s)}))


def gathered(
    local_model: LocalModel, examples: Sequence[Example], training: LocalTraining, experts: tuple[int, ...]
) -> dict[str, Statistics]:
    """By layer, the sums over these examples with the one core that is in the model."""
    model, routing = local_model.model, routing_of(local_model.model)
    assert routing is not None
    routing.hard, routing.held = True, (0,)
    sums = {name: Statistics.zero(len(experts), size) for name, size in _sizes(local_model.exchange).items()}
    with evaluating(model):
        for at in batches_by_length([length_of(e) for e in examples], training.batch_size):
            batch = to_device(local_model.collate([examples[i] for i in at]), local_model.device)
            with autocast(training, local_model.device):
                for name, q in _looked_at(local_model, batch):
                    _add(sums[name], q, _places(batch, experts, len(at)), routing.valid)
    return sums


def _looked_at(local_model: LocalModel, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The q (n, t or 1, size) of every gate in one pass."""
    model = local_model.model
    if POOLED in _sizes(local_model.exchange):
        yield POOLED, base_states(model, tell(model, batch))
        return
    names = {id(layer): name for name, layer in local_model.attached.layers.items()}
    with noting(model) as notes:
        model(**tell(model, batch))
    yield from ((names[id(note.layer)], note.q) for note in notes)


def _places(batch: Batch, experts: tuple[int, ...], rows: int) -> Tensor:
    """Where each row's expert is among these."""
    if len(experts) == 1:
        return torch.zeros(rows, dtype=torch.long)
    return (batch["experts"].cpu()[:, None] == torch.tensor(experts)).int().argmax(1)


def _add(sums: Statistics, q: Tensor, places: Tensor, valid: Tensor | None) -> None:
    if q.shape[1] == 1:
        sums.add(q[:, 0], places)
        return
    assert valid is not None
    counted = valid.cpu()
    sums.add(q.cpu()[counted], places[:, None].expand(-1, q.shape[1])[counted])


def _packed(name: str, sums: Statistics) -> list[tuple[str, Tensor]]:
    rows, columns = torch.triu_indices(*sums.moment.shape).unbind()
    moment = sums.moment[rows, columns]
    return [(f"{name}.counts", sums.counts), (f"{name}.sums", sums.sums), (f"{name}.moment", moment)]


# The server's side


def summed(
    answers: Iterable[Outcome],
    state: ServerState,
    exchange: Exchange,
    registered: Mapping[int, int],
    received: Tally,
    refused: Callable[[int, str], None],
) -> dict[str, Statistics]:
    """What each gate is to be made of, by layer; answers of no use are left out.

    Args:
        received: counts every answer that was looked at.
        refused: told of such a client, and why.
    """
    assert exchange.experts is not None
    count = exchange.experts.count
    totals = {name: Statistics.zero(count, size) for name, size in _sizes(exchange).items()}
    heard = set[int]()
    for answer in answers:
        try:
            if isinstance(answer, Failed) or answer.client in heard or answer.client not in registered:
                raise UpdateRejected(getattr(answer, "reason", "it was not asked, or answered before"))
            heard.add(answer.client)
            received.add(len(answer.message), wire.count(answer.message))
            part = _accepted(answer.client, answer.message, state, exchange, registered[answer.client])
        except UpdateRejected as reason:
            refused(answer.client, printable(reason))
            continue
        for name, total in totals.items():
            total += part[name]
    return totals


def _accepted(
    client: int, message: bytes, state: ServerState, exchange: Exchange, registered: int
) -> dict[str, Statistics]:
    """The sums of one client, in their places among all experts."""
    experts: ExpertState = state.experts  # type: ignore[assignment]
    held = experts.held_by(client)
    layout = answer_layout(exchange, held)
    header, vector = wire.unpack(message, size=layout.size)
    expected = wire.Header(exchange.method.name, state.round, layout.digest, client)
    wire.check(header, vector, expected=expected, size=layout.size)
    if header.num_examples != registered:
        raise UpdateRejected(
            f"wrong num_examples: this client registered {registered}, its sums count {header.num_examples}"
        )
    named, made = layout.unflatten(vector), {}
    for name, size in _sizes(exchange).items():
        if (named[f"{name}.counts"] < 0).any():
            raise UpdateRejected("wrong counts: fewer than none")
        made[name] = _in_place(named, name, held, len(experts.usage), size)
    return made


def _in_place(
    named: dict[str, Tensor], name: str, held: tuple[int, ...], count: int, size: int
) -> Statistics:
    whole = Statistics.zero(count, size)
    whole.counts[list(held)] = named[f"{name}.counts"].double()
    whole.sums[list(held)] = named[f"{name}.sums"].double()
    rows, columns = torch.triu_indices(size, size).unbind()
    whole.moment[rows, columns] = whole.moment[columns, rows] = named[f"{name}.moment"].double()
    return whole
