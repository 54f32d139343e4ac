"""Secure aggregation of 25 clients' updates of 917,504 numbers: its cost in time and bytes.

    python benchmarks/secure_sum.py

Times are the process's, so that other work on the machine counts little. A client's is all it does beside
training: keys, shares, numbers to integers, masks, unmasking. The server's is its whole round, beside its
plain round from the same bytes.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from common import verdict

from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.member import Member
from fedsb.federation.secure.messages import STAGES
from fedsb.federation.secure.rounds import aggregate_total
from fedsb.federation.secure.server import SecureSum, Total, new_terms
from fedsb.federation.secure.summands import ROUND_BITS, of_update
from fedsb.federation.secure.terms import Rules
from fedsb.federation.server import Arrived, Outcome, aggregate, broadcasts
from fedsb.federation.state import ServerState
from fedsb.methods import Shape, fed_sb

CLIENTS, LOST, LAYERS, RANK, REPEATS = 25, 3, 224, 64, 3
RULES = Rules("benchmark", 0.67, 8.0)


class Round:
    """One round: members answer in this process, their time kept apart from the server's."""

    def __init__(self, exchange: Exchange, messages: Sequence[bytes], clients: int, lost: int = 0):
        self.exchange, self.messages, self.lost = exchange, messages, lost
        self.state = ServerState(0, torch.zeros(exchange.down(RANK).size))
        self.question = broadcasts(self.state, exchange)(0, exchange.whole)
        self.coding, self.seconds = (
            FixedPoint(ROUND_BITS, RULES.largest, clients),
            defaultdict[int, float](float),
        )
        self.members = {client: Member(client, RULES) for client in range(clients)}

    def run(self) -> tuple[Total, float]:
        """The sum, and the seconds of all that is not the clients'."""
        terms = new_terms("train", 1, self.members)
        size = self.exchange.up(1, self.exchange.whole).size
        began = time.process_time()
        total = SecureSum(self._ask, terms, RULES, self.question, self.coding, size).total()
        method = self.exchange.method.aggregation
        aggregate_total(self.state, total, self.exchange, method, heaviest=1, expected=len(total.clients))
        return total, time.process_time() - began - sum(self.seconds.values())

    def _ask(self, kind: str, clients: Sequence[int], message_to: object) -> Iterator[Outcome]:
        gone = self.lost if kind == "train" else 0
        for client in clients[gone:]:
            question = message_to(client)  # type: ignore[operator]
            began = time.process_time()
            answer = self._answer(kind, client, question)
            self.seconds[client] += time.process_time() - began
            yield Arrived(client, answer)

    def _answer(self, kind: str, client: int, question: bytes) -> bytes:
        member = self.members[client]
        if kind in STAGES:
            return member.answer(kind, question)
        inner = member.opened(kind, question)
        update = of_update(inner, self.messages[client], self.exchange, "uniform")
        return member.masked(update.integers(self.coding, 1), self.coding)


def main() -> None:
    exchange = Exchange(fed_sb, {f"layer{i}": Shape(512, 512) for i in range(LAYERS)}, RANK, 1, {})
    layout, draw = exchange.up(1, exchange.whole), torch.Generator().manual_seed(0)
    headers = [wire.Header("fed-sb", 1, layout.digest, c, 1, train_loss=1.0) for c in range(CLIENTS)]
    messages = [wire.pack(header, torch.randn(layout.size, generator=draw)) for header in headers]
    client, server, plain, recovered = [], [], [], []
    for _ in range(REPEATS):
        plain.append(_plain(exchange, messages))
        of_all = Round(exchange, messages, CLIENTS)
        total, seconds = of_all.run()
        server.append(seconds)
        client.append(statistics.median(of_all.seconds.values()))
        recovered.append(Round(exchange, messages, CLIENTS, LOST).run()[1])
    print(f"{CLIENTS} clients, {layout.size:,} numbers; the server's plain round: {min(plain):.3f} s")
    verdict("a client's own time, seconds", min(client), 0.060)
    verdict("the server's round / its plain one", min(server) / min(plain), 3.0)
    verdict(f"with {LOST} of {CLIENTS} lost after keys / with none", min(recovered) / min(server), 2.0)
    verdict("bytes of a client's update / the plain one", total.up.bytes / CLIENTS / len(messages[0]), 1.1)
    keys = total.keys_up.bytes + total.keys_down.bytes
    print(f"keys and shares, both ways, a client: {keys / CLIENTS:,.0f} bytes")
    few, many = (_peak(exchange, messages, count) for count in (5, 25))
    verdict("Python memory at its peak, 25 clients / 5", many / few, 1.1)


def _plain(exchange: Exchange, messages: Sequence[bytes]) -> float:
    state = ServerState(0, torch.zeros(exchange.down(RANK).size))
    arrivals = (Arrived(client, message) for client, message in enumerate(messages))
    began = time.process_time()
    aggregate(state, arrivals, exchange, weighting="uniform")
    return time.process_time() - began


def _peak(exchange: Exchange, messages: Sequence[bytes], clients: int) -> int:
    made = Round(exchange, messages, clients)
    tracemalloc.start()
    made.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
