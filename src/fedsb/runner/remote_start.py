"""The start of a run whose examples are elsewhere: head warm-up and bases, by asking.

    warm-up x rounds:  head, sizes -> contributors train it on their draw -> weighted mean
    contribute:        head, sizes -> each contributor's factors or sketches -> combined -> SVD
    bases:             B and A, as they travel, to whoever lacks them before it trains

Sizes are everybody's numbers of examples: from them each party draws its calibration examples as a simulated
run would. Under privacy it draws them from a secret of its own, and the server counts its contribution as
charged before it asks. A contributor that fails, or whose answer is of no use, is left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsb.adapter import Factors
from fedsb.adapter.linear import features
from fedsb.common.files import write_bytes
from fedsb.common.printable import printable
from fedsb.errors import UpdateRejected
from fedsb.federation.exchange import Layout
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.server import SecureSum, Total, new_terms
from fedsb.federation.secure.summands import ONCE
from fedsb.federation.secure.terms import Rules
from fedsb.federation.server import Failed, Outcome
from fedsb.federation.start.from_gradients import (
    Calibration,
    Draw,
    as_received,
    as_sent,
    bases_down,
    combine,
    combine_total,
    contribution,
    summed_layout,
)
from fedsb.federation.start.head_warmup import Answers, AskForHeads, warm_up, warm_up_securely
from fedsb.federation.start.initialize import StartResult, bases_kind, needs_data, start_factors
from fedsb.federation.start.messages import LARGEST, Facts, check_start, pack_start, unpack_start
from fedsb.federation.start.robust import Head
from fedsb.federation.start.settings import Start
from fedsb.federation.traffic import Traffic
from fedsb.methods import Method, Shape
from fedsb.report.progress import Progress
from fedsb.runner.clients import Kind, RemoteClients

BASES = "bases.safetensors"
"""In the folder of a run whose bases were made of gradients elsewhere, at the server and at a node."""
LARGEST_SUM = 1e12
"""Magnitude of a number of a contribution that is absurd; a product of two such is still finite in fp32."""
Usable = tuple[int, dict[str, Tensor], int]
"""(client, its tensors, bytes of its message)."""


def start_remotely(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    head: Mapping[str, nn.Parameter],
    method: Method,
    start: Start,
    calibration: Calibration,
    *,
    num_clients: int,
    sums: MutableMapping[str, Tensor] | None,
    remote: RemoteClients,
    progress: Progress,
    bases: Path,
) -> StartResult:
    """As `initialize.start_factors`, of examples that are elsewhere. What needs none, or public ones alone,
    is made here.

    Args:
        bases: the file for the bases' message to the clients, if there are such.

    Raises:
        RunFailed: no contributor answered.
    """
    if calibration.public or not needs_data(start, method, head):
        made = start_factors(
            model, targets, head, method, start, calibration, num_clients=num_clients, sums=sums
        )
        from_gradients = method.draw is None and bases_kind(start, method) == "gradient"
        return replace(made, factors=_shared(made.factors, bases)) if from_gradients else made
    draw, traffic = calibration.draw, list[Traffic]()
    if head and start.head_warmup is not None:
        rounds = start.head_warmup.rounds
        if start.secure is not None:
            heaviest = max(map(len, draw.values()))
            sum_of = partial(_sum_of_heads, head, remote, start.secure, draw, progress)
            traffic = warm_up_securely(head, rounds, len(draw), heaviest, sum_of)
        else:
            ask = _ask_for_heads(head, remote, draw, progress)
            traffic = warm_up(head, rounds, len(draw), ask, start.robust)
    bases_alone = replace(start, head_warmup=None)
    if needs_data(bases_alone, method, head):
        factors, up = _gather(targets, head, start, remote, draw, progress)
        traffic += [*up, bases_down(factors, num_clients)]
        return StartResult(_shared(factors, bases), traffic, draw)
    made = start_factors(model, targets, head, method, bases_alone, calibration, num_clients=num_clients)
    return replace(made, traffic=[*traffic, *made.traffic], draw=draw)


def _shared(factors: Mapping[str, Factors], file: Path) -> dict[str, Factors]:
    """The bases as everybody has them who is sent this file, in which their message is written."""
    write_bytes(file, pack_start({"kind": "bases", "round": 0}, as_sent(factors)))
    return as_received(factors)


def share_bases(file: Path, remote: RemoteClients, progress: Progress) -> None:
    """Give every client the bases that it cannot make itself; `RemoteClients.ask` may leave out who has them.

    Args:
        file: the message as it was made at the start: bases rounded again would not quite be the same.
    """
    if not file.exists():
        return
    message = file.read_bytes()
    for answer in remote.ask("bases", range(len(remote.sizes)), lambda client: message):
        if isinstance(answer, Failed):
            progress.client_ends(answer.client, answer.reason)


def _question(kind: Kind, number: int, head: Mapping[str, Tensor], remote: RemoteClients) -> bytes:
    tensors = {f"head.{name}": tensor for name, tensor in head.items()}
    return pack_start({"kind": kind, "round": number}, tensors | {"sizes": torch.tensor(remote.sizes)})


def _ask_for_heads(
    head: Mapping[str, nn.Parameter], remote: RemoteClients, draw: Draw, progress: Progress
) -> AskForHeads:
    layout, template = Layout.of(head), {f"head.{name}": parameter for name, parameter in head.items()}

    def ask(number: int) -> tuple[int, Answers]:
        question = _question("warm-up", number, head, remote)
        answers = remote.ask("warm-up", list(draw), lambda client: question)
        usable = _usable("warm-up", number, answers, template, progress, asked=draw)
        return len(question), ((_head(client, tensors), size) for client, tensors, size in usable)

    def _head(client: int, tensors: Mapping[str, Tensor]) -> Head:
        return Head(client, layout.flatten({n: tensors[f"head.{n}"] for n in head}), len(draw[client]))

    return ask


def _gather(
    targets: Mapping[str, nn.Module],
    head: Mapping[str, Tensor],
    start: Start,
    remote: RemoteClients,
    draw: Draw,
    progress: Progress,
) -> tuple[dict[str, Factors], list[Traffic]]:
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    question = _question("contribute", 0, head, remote)
    if start.private is not None:
        for client in draw:
            start.private.charge(client)
    if start.secure is not None:
        size = summed_layout(targets, start).size
        sent = Layout.of(head).size
        total = _total(remote, start.secure, "contribute", 0, draw, question, sent, size, progress)
        return combine_total(targets, start, draw, total)
    answers = remote.ask("contribute", list(draw), lambda client: question)
    template = contribution(start).template(shapes, start)
    usable = _usable("contribute", 0, answers, template, progress, asked=draw, largest=LARGEST_SUM)
    sizes = ((tensors, len(draw[client]), size) for client, tensors, size in usable)
    factors, up = combine(targets, start, sizes)
    return factors, [up]


def _sum_of_heads(
    head: Mapping[str, nn.Parameter],
    remote: RemoteClients,
    rules: Rules,
    draw: Draw,
    progress: Progress,
    number: int,
    before: Tensor,
) -> Total:
    question = _question("warm-up", number, head, remote)
    return _total(
        remote,
        rules,
        "warm-up",
        number,
        draw,
        question,
        before.numel(),
        before.numel(),
        progress,
        max(map(len, draw.values())),
    )


def _total(
    remote: RemoteClients,
    rules: Rules,
    kind: Kind,
    number: int,
    draw: Draw,
    question: bytes,
    question_size: int,
    size: int,
    progress: Progress,
    heaviest: int = 1,
) -> Total:
    """The secure sum of everybody's answers; who is not in it is told of."""
    terms, coding = new_terms(kind, number, draw, heaviest), FixedPoint(*ONCE, len(draw))
    made = SecureSum(remote.ask, terms, rules, question, coding, size, question_size, verify=remote.verify)
    total = made.total()
    for client, reason in total.lost.items():
        progress.client_ends(client, reason)
    return total


def _usable(
    kind: Kind,
    number: int,
    answers: Iterable[Outcome],
    template: Mapping[str, Tensor],
    progress: Progress,
    *,
    asked: Container[int] | None = None,
    largest: float = LARGEST,
) -> Iterator[Usable]:
    """Every answer that can be used, one of each client; the others are told of and left out."""
    heard: set[int] = set()
    for answer in answers:
        try:
            if isinstance(answer, Failed):
                raise UpdateRejected(answer.reason)
            if answer.client in heard or (asked is not None and answer.client not in asked):
                raise UpdateRejected("it was not asked, or answered before")
            heard.add(answer.client)
            facts, tensors = unpack_start(answer.message, template)
            expected: Facts = {"kind": kind, "round": number, "client": answer.client}
            check_start(facts, tensors, expected=expected, template=template, largest=largest)
        except UpdateRejected as reason:
            progress.client_ends(answer.client, printable(reason))
            continue
        yield answer.client, tensors, len(answer.message)
