"""The nodes of a run as the server reaches them over Flower: who they are, and a round's questions.

hello -> number, examples, base digest of each node -> asks a cohort -> answers as they come
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from fedsb.config import RunConfig
from fedsb.errors import RunFailed
from fedsb.flower import asking
from fedsb.flower.asking import Answer, Asking
from fedsb.flower.records import Facts, facts_of, pack, payload_of
from fedsb.node import NodeFacts
from fedsb.peers import Kind, MessageTo
from fedsb.server import Arrived, Failed, Outcome

AGAIN_SECONDS = 20.0
"""Until a node that said no, or nothing, is asked again: somebody may have mended it."""
LIFE_SECONDS = 7 * 24 * 3600.0
"""Flower drops a question or an answer that is older. Rounds end by their deadline, not by this."""
HELLO_SECONDS = 300.0
"""A node loads its data and its model before it answers the first question."""


@dataclass
class Federation:
    """Nodes by client number.

    Attributes:
        run: names the run on every node.
        say: where a line about the nodes goes.
        nodes: client -> its newest node id.
        facts: client -> what it said of itself.
        hello_at: node id -> when to say hello to it next; never again to those that take part.
        refusals: node id -> what came of the last hello, where it was no good.
        bases, holding: the bases to be shared, and the nodes that have them.
    """

    grid: Grid
    config: RunConfig
    run: str
    say: Callable[[str], None]
    keys: str | None = None
    nodes: dict[int, int] = field(default_factory=dict)
    facts: dict[int, NodeFacts] = field(default_factory=dict)
    hello_at: dict[int, float] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    bases: bytes = b""
    holding: set[int] = field(default_factory=set)

    def gather(self, seconds: float) -> None:
        """Wait until every client of the config has said hello.

        Raises:
            RunFailed: some have not; which, and what the others said.
        """
        deadline, wanted = time.monotonic() + seconds, set(range(self.config.federation.clients))
        self.meet()
        while missing := wanted - set(self.nodes):
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"no node for client {', '.join(map(str, sorted(missing)))} within {seconds:g} s: start "
                    "their SuperNodes, look at their logs, and check `client` in their node configs"
                )
            time.sleep(asking.POLL_SECONDS)
            self.meet()
        self._check_same_base()

    def meet(self) -> None:
        """Say hello to nodes that came since; a node that comes back takes its client's place."""
        now = time.monotonic()
        due = [node for node in self.grid.get_node_ids() if self.hello_at.get(node, 0.0) <= now]
        for node, facts in self._ask("hello", due, lambda node: b"", HELLO_SECONDS):
            if isinstance(facts, str):
                self._not_yet(node, facts)
                continue
            self.hello_at[node] = math.inf
            self._join(node, facts_of(facts.content))

    def _not_yet(self, node: int, why: str) -> None:
        """A node that cannot take part, or was gone before it answered, is asked again later."""
        self.hello_at[node] = time.monotonic() + AGAIN_SECONDS
        if self.refusals.get(node) != why:
            self.refusals[node] = why
            self.say(f"node {node}: {why}")

    def ask(self, kind: Kind, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        """`peers.Ask` over Flower: answers as they come, until all have or the round's deadline."""
        self.meet()
        if kind == "bases":
            yield from self._share(message_to(0), cohort)
            return
        if kind == "train" and self.bases:
            lacking = [client for client in cohort if self.nodes.get(client) not in self.holding]
            _log_failures(self._share(self.bases, lacking), self.say)
        yield from self._each(kind, cohort, message_to)

    def _share(self, bases: bytes, clients: Sequence[int]) -> Iterator[Outcome]:
        """Send the bases to these; remember them for nodes that come or come back later."""
        self.bases = bases
        for outcome in self._each("bases", clients, lambda client: bases):
            if isinstance(outcome, Arrived):
                self.holding.add(self.nodes[outcome.client])
            yield outcome

    def _each(self, kind: Kind, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        client_of = {self.nodes[client]: client for client in cohort if client in self.nodes}
        answers = self._ask(
            kind, client_of, lambda node: message_to(client_of[node]), self.config.federation.deadline_seconds
        )
        for node, answer in answers:
            client = client_of[node]
            if isinstance(answer, str):
                yield Failed(client, answer)
            else:
                yield Arrived(client, payload_of(answer.content))
        absent = [client for client in cohort if client not in self.nodes]
        yield from (Failed(client, "its node is not connected") for client in absent)

    def _ask(
        self,
        kind: Kind | Literal["hello"],
        nodes: Iterable[int],
        payload_for: Callable[[int], bytes],
        seconds: float | None,
    ) -> Iterator[tuple[int, Answer]]:
        """Each node's answer, or why there is none."""
        privacy = self.config.privacy
        paid = privacy is not None and privacy.unit == "example" and kind != "hello"

        def send(nodes: Iterable[int]) -> Iterator[tuple[str, int]]:
            for payload, alike in groupby(nodes, key=payload_for):
                yield from self._push(kind, list(alike), payload)

        return Asking(self.grid, send, self.say, again=not paid).answers(nodes, seconds)

    def _push(self, kind: str, nodes: Sequence[int], payload: bytes) -> Iterator[tuple[str, int]]:
        """(message id, node). What is the same for all of them is hashed and carried by Flower once."""
        config = json.dumps(self.config.model_dump(mode="json"))
        facts: Facts = {"kind": kind, "config": config, "run": self.run}
        flowers, content = "query" if kind == "hello" else "train", pack(facts, payload)
        messages = [Message(content, node, flowers, ttl=LIFE_SECONDS) for node in nodes]
        return zip(self.grid.push_messages(messages), nodes, strict=True)

    def _join(self, node: int, facts: dict[str, str | int | float]) -> None:
        found = NodeFacts(int(facts["client"]), int(facts["num_examples"]), str(facts["base_digest"]))
        before = self.facts.get(found.client)
        if before is not None and before != found:
            self.say(f"node {node}: says {found}, but client {found.client} was {before}: left out")
            return
        self.nodes[found.client], self.facts[found.client] = node, found
        self.say(f"client {found.client} is node {node}, with {found.num_examples} examples")

    def _check_same_base(self) -> None:
        digests = {facts.base_digest for facts in self.facts.values()}
        if len(digests) > 1:
            named = ", ".join(f"client {c}: {facts.base_digest}" for c, facts in sorted(self.facts.items()))
            raise RunFailed(f"the nodes' base models are not the same weights ({named})")


def _log_failures(outcomes: Iterable[Outcome], say: Callable[[str], None]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            say(f"client {outcome.client}: {outcome.reason}")
