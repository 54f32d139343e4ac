"""The nodes of a run as the server reaches them over Flower: who they are, and a round's questions.

hello -> number, examples, base digest of each node -> asks a cohort -> answers as they come

A node is known by its answer to hello, signed with the key that is registered for its client. Whatever a node
sends or fails to send is that node's failure: nothing of it is raised here, and nobody waits for it but the
round that asked it, up to the deadline.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from fedsb.common.printable import site_name
from fedsb.config import RunConfig
from fedsb.deploy import asking
from fedsb.deploy.answers import Said, node_facts, read_answer
from fedsb.deploy.asking import Answer, Question
from fedsb.deploy.identity import PublicKey, read_registered, statement, verify
from fedsb.deploy.node import NodeFacts
from fedsb.deploy.records import Facts, pack
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation.secure.member import Verify
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.runner.clients import ADAPTED, Kind, MessageTo

AGAIN_SECONDS = 20.0
"""Until a node that said no, or nothing, is asked again: somebody may have fixed it."""
LIFE_SECONDS = 7 * 24 * 3600.0
"""Flower drops a question or an answer that is older. Rounds end by their deadline, not by this."""
HELLO_SECONDS = 300.0
"""A node loads its data and its model before it answers the first question. Nobody waits for it meanwhile."""
MOST_LINES = 5
"""About one node that cannot take part: its reasons are its own to choose."""
UNSIGNED = (
    "WARNING: no keys are registered for this run (clients in the run config): nodes are taken at their "
    "word, and whoever may connect can answer as any client"
)

Nonces = dict[str, str]
"""Message id -> the nonce of that question."""


@dataclass
class Nodes:
    """Nodes by client number.

    Attributes:
        run: names the run on every node.
        say: where a line about the nodes goes.
        keys: the folder of registered keys (`identity.read_registered`); None: answers need no signature.
        registered: client -> the key that its answers must be signed with.
        nodes: client -> its newest node id.
        facts: client -> what it said of itself.
        online: nodes that were connected at the last look.
        hello_at: node id -> when to say hello to it next; never again to those that take part.
        refusals: node id -> what came of hellos that were no good.
        bases, holding: the bases to be shared, and the nodes that have them.
    """

    grid: Grid
    config: RunConfig
    run: str
    say: Callable[[str], None]
    keys: str | Path | None = None
    registered: dict[int, PublicKey] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    facts: dict[int, NodeFacts] = field(default_factory=dict)
    online: set[int] = field(default_factory=set)
    hello_at: dict[int, float] = field(default_factory=dict)
    refusals: dict[int, set[str]] = field(default_factory=dict)
    bases: bytes = b""
    holding: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._hello_nonces: Nonces = {}
        send = partial(self._send, "hello", lambda node: b"", self._hello_nonces)
        self._hello = Question(self.grid, send, self.say, again=False)

    def gather(self, seconds: float) -> None:
        """Wait until every client of the config has said hello.

        Raises:
            RunFailed: some have not; which, and what the others said.
            InputError: the folder of keys is wrong.
        """
        if self.keys is None:
            self.say(UNSIGNED)
        deadline, clients = time.monotonic() + seconds, set(range(self.config.federation.clients))
        self.meet()
        while missing := clients - set(self.nodes):
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"no node for {', '.join(map(self._name, sorted(missing)))} within {seconds:g} s: start "
                    "their SuperNodes, look at their logs, and check `client` in their node configs"
                )
            time.sleep(asking.POLL_SECONDS)
            self.meet()
        self._check_same_base()

    def meet(self) -> None:
        """Say hello to nodes that came since, and take in who answered it; waits for nobody.

        A node that comes back takes its client's place. A client whose key was revoked is dropped.
        """
        self._read_keys()
        connected, now = list(self.grid.get_node_ids()), time.monotonic()
        self.online = set(connected)
        greeted = {asked.node for asked in self._hello.waiting.values()}
        due = [n for n in connected if n not in greeted and self.hello_at.get(n, 0.0) <= now]
        for node, answer in [*self._hello.ask(due, HELLO_SECONDS), *self._hello.look()]:
            try:
                self._join(node, answer)
            except UpdateRejected as reason:
                self._not_yet(node, str(reason))

    def _read_keys(self) -> None:
        if self.keys is None:
            return
        before, self.registered = self.registered, read_registered(self.keys)
        for client in [c for c in self.nodes if self.registered.get(c) != before.get(c)]:
            node = self.nodes.pop(client)
            self.hello_at[node] = 0.0
            self.say(f"{self._name(client)}: its key was revoked or replaced; node {node} is left out")

    def _not_yet(self, node: int, why: str) -> None:
        """A node that cannot take part, or was gone before it answered, is asked again later."""
        self.hello_at[node] = time.monotonic() + AGAIN_SECONDS
        said = self.refusals.setdefault(node, set())
        if why not in said and len(said) < MOST_LINES:
            said.add(why)
            self.say(f"node {node}: {why}")

    def _join(self, node: int, answer: Answer) -> None:
        said, nonce = _heard(answer, self._hello_nonces)
        facts = node_facts(said.facts, self.config.federation.clients)
        client = facts.client
        self._check_signed("hello", nonce, node, client, said)
        before, former = self.facts.get(client), self.nodes.get(client)
        if before is not None and before != facts:
            raise UpdateRejected(f"says {facts}, but client {client} was {before}: left out")
        if self.keys is None and former in self.online and former != node:
            raise UpdateRejected(f"says it is client {client}, which is node {former}: left out")
        self.hello_at[node] = math.inf
        self.nodes[client], self.facts[client] = node, facts
        self.say(f"{self._named(client)} is node {node}, with {facts.num_examples} examples")

    def _name(self, client: int) -> str:
        return site_name(self.config.federation.sites or (), client)

    def _named(self, client: int) -> str:
        """Its number too, by which its owner knows its key."""
        named = self.config.federation.sites is not None
        return f"{self._name(client)} (client {client})" if named else f"client {client}"

    def _check_signed(self, kind: str, nonce: str, node: int, client: int, said: Said) -> None:
        """Refuse an answer that the holder of this client's key did not sign as it came."""
        if self.keys is None:
            return
        key = self.registered.get(client)
        if key is None:
            raise UpdateRejected(f"no key is registered for client {client}; ./register.sh does that")
        if not said.signature:
            raise UpdateRejected("its answer is not signed; set `key` in its node config")
        text = statement(self.run, kind, nonce, node, client, said.facts, said.payload)
        if not verify(key, said.signature, text):
            raise UpdateRejected(
                f"its answer is not signed with the key registered for client {client}, or it was altered or "
                "answers another question"
            )

    @property
    def verify(self) -> Verify | None:
        """Whether a client's registered key signed a text; None where no keys are registered."""

        def signed(client: int, signature: bytes, text: bytes) -> bool:
            key = self.registered.get(client)
            return key is not None and verify(key, signature, text)

        return None if self.keys is None else signed

    def ask(self, kind: Kind, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        """`clients.Ask` over Flower: answers as they come, until all have or the round's deadline.

        Clients whose nodes are not there are asked last: a node that has just come back may be by then.
        """
        self.meet()
        if kind == "bases":
            self.bases = message_to(0)
        present = [client for client in cohort if self.nodes.get(client) in self.online]
        yield from self._ask(kind, present, message_to)
        if late := [client for client in cohort if client not in present]:
            self.meet()
            yield from self._ask(kind, late, message_to)

    def _ask(self, kind: Kind, clients: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        if kind in ADAPTED and self.bases:
            lacking = [client for client in clients if self.nodes.get(client) not in self.holding]
            self._log_failures(self._each("bases", lacking, lambda client: self.bases))
        yield from self._each(kind, clients, message_to)

    def _each(self, kind: Kind, clients: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        client_of = {self.nodes[client]: client for client in clients if client in self.nodes}
        nonces: Nonces = {}
        send = partial(self._send, kind, lambda node: message_to(client_of[node]), nonces)
        privacy = self.config.privacy
        charged = privacy is not None and privacy.unit == "example"
        question = Question(self.grid, send, self.say, again=not charged)
        for node, answer in question.answers(client_of, self.config.federation.deadline_seconds):
            client = client_of[node]
            try:
                said, nonce = _heard(answer, nonces)
                self._check_signed(kind, nonce, node, client, said)
                if not said.payload:
                    raise UpdateRejected("its answer is empty")
            except UpdateRejected as reason:
                yield Failed(client, str(reason))
                continue
            if kind == "bases":
                self.holding.add(node)
            yield Arrived(client, said.payload)
        for client in [client for client in clients if client not in self.nodes]:
            has_key = self.keys is None or client in self.registered
            yield Failed(client, "its node is not connected" if has_key else "no key is registered for it")

    def _send(
        self,
        kind: Kind | Literal["hello"],
        payload_for: Callable[[int], bytes],
        nonces: Nonces,
        nodes: Iterable[int],
    ) -> Iterator[tuple[str, int]]:
        """(message id, node). What is the same for all of them is hashed and carried by Flower once."""
        config = json.dumps(self.config.model_dump(mode="json"))
        for payload, group in groupby(nodes, key=payload_for):
            nonce = secrets.token_hex(16)
            facts: Facts = {"kind": kind, "config": config, "run": self.run, "nonce": nonce}
            flower_type, content = "query" if kind == "hello" else "train", pack(facts, payload)
            messages = [Message(content, node, flower_type, ttl=LIFE_SECONDS) for node in group]
            for name, message in zip(self.grid.push_messages(messages), messages, strict=True):
                nonces[name] = nonce
                yield name, message.metadata.dst_node_id

    def _log_failures(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                self.say(f"{self._name(outcome.client)}: {outcome.reason}")

    def _check_same_base(self) -> None:
        digests = {facts.base_digest for facts in self.facts.values()}
        if len(digests) > 1:
            each = sorted(self.facts.items())
            named = ", ".join(f"{self._name(client)}: {facts.base_digest}" for client, facts in each)
            raise RunFailed(f"the nodes' base models are not the same weights ({named})")


def _heard(answer: Answer, nonces: Nonces) -> tuple[Said, str]:
    """What a node said, and the nonce of the question.

    Raises:
        UpdateRejected: nothing that could be read.
    """
    if isinstance(answer, str):
        raise UpdateRejected(answer)
    return read_answer(answer), nonces.pop(answer.metadata.reply_to_message_id, "")
