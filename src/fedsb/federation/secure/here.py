"""Secure sums of clients in this process: the same members, asked without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsb.errors import UpdateRejected
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.member import Member
from fedsb.federation.secure.messages import STAGES
from fedsb.federation.secure.server import SecureSum, Total, new_terms
from fedsb.federation.secure.summands import ONCE, Summand
from fedsb.federation.secure.terms import Rules
from fedsb.federation.server import Arrived, Failed, Outcome

MessageTo = Callable[[int], bytes]
Work = Callable[[Sequence[int], MessageTo], Iterable[tuple[int, Summand] | Failed]]
"""(clients, client -> its question) -> what each adds, as they come."""

Integers = Callable[[int, Summand], np.ndarray]


@dataclass
class Here:
    """As `server.Ask`, of simulated clients.

    Attributes:
        work: what clients do in between. integers: of what they did, as it is added up.
        members: client -> its side, made when it is first asked.
    """

    rules: Rules
    work: Work
    integers: Integers
    coding: FixedPoint
    members: dict[int, Member] = field(default_factory=dict)

    def __call__(self, kind: str, clients: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        """One outcome for each client."""
        if kind not in STAGES:
            yield from self._worked(kind, clients, message_to)
            return
        for client in clients:
            try:
                yield Arrived(client, self._member(client).answer(kind, message_to(client)))
            except UpdateRejected as reason:
                yield Failed(client, str(reason))

    def _member(self, client: int) -> Member:
        return self.members.setdefault(client, Member(client, self.rules))

    def _worked(self, kind: str, clients: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        def question(client: int) -> bytes:
            return self._member(client).opened(kind, message_to(client))

        for done in self.work(clients, question):
            if isinstance(done, Failed):
                yield done
                continue
            client, summand = done
            try:
                integers = self.integers(client, summand)
                yield Arrived(client, self._member(client).masked(integers, self.coding))
            except UpdateRejected as reason:
                yield Failed(client, str(reason))


def secure_sum_here(
    rules: Rules,
    kind: str,
    number: int,
    summand_of: Callable[[int], Summand],
    clients: Sequence[int],
    size: int,
    *,
    heaviest: int = 1,
    question: bytes | None = None,
    question_size: int = 0,
) -> Total:
    """A sum of the start over clients in this process.

    Args:
        question: what a client would be sent, with so many numbers in it; None: its kind alone.

    Raises:
        RunFailed: fewer clients than the threshold.
    """

    def work(asked: Sequence[int], question_to: MessageTo) -> Iterator[tuple[int, Summand]]:
        for client in asked:
            question_to(client)
            yield client, summand_of(client)

    coding = FixedPoint(*ONCE, len(clients))
    terms = new_terms(kind, number, clients, heaviest)
    ask = Here(rules, work, lambda client, summand: summand.integers(coding, heaviest), coding)
    asked = kind.encode() if question is None else question
    return SecureSum(ask, terms, rules, asked, coding, size, question_size).total()
