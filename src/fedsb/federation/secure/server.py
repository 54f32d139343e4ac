"""The server's side of a secure sum: it asks, adds masked numbers as they come, and takes off what is left.

Memory: one accumulator, and of each client some hundred bytes for each of its neighbours.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsb.common.printable import printable, site_name
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation.secure import messages
from fedsb.federation.secure.fixed_point import LARGEST_LOSS, FixedPoint
from fedsb.federation.secure.masks import KEY_BYTES, add_mask, agree, derived, key_pair
from fedsb.federation.secure.member import Verify, pair_key, sign_of
from fedsb.federation.secure.messages import BOTH_KEYS, SEALED, SIGNATURE_BYTES, TAIL, named
from fedsb.federation.secure.shares import SHARE_BYTES, combine
from fedsb.federation.secure.terms import (
    Circle,
    Rules,
    Terms,
    circle,
    clients_needed,
    holders_needed,
)
from fedsb.federation.server import Failed, Outcome
from fedsb.federation.start.messages import pack_start
from fedsb.federation.traffic import Direction, Tally, Traffic

Ask = Callable[[Any, Sequence[int], Callable[[int], bytes]], Iterable[Outcome]]
"""(question, cohort, client -> its message) -> one outcome for each client, as they come."""
Lost = dict[int, str]
"""Client -> why it is not in the sum."""


@dataclass
class Total:
    """A finished sum.

    Attributes:
        values: sum of weight / heaviest * numbers, in fp64. weight: of weights. loss: of weight * loss.
        clients: whose numbers are in it. lost: who else was asked, and why it is not.
        down, up, keys_down, keys_up: what was sent: of the work, and of keys and shares.
    """

    values: Tensor
    weight: int
    loss: float
    clients: list[int]
    lost: Lost
    down: Tally
    up: Tally
    keys_down: Tally
    keys_up: Tally


class SpoiledSum(RunFailed):
    """Nothing can be unmasked, since one client's shares are of no use: it dealt wrong ones."""

    def __init__(self, reason: str, client: int):
        super().__init__(reason)
        self.client = client


KEYS = "keys and shares of secure aggregation"


def traffic_of(
    totals: Sequence[Total | SecureSum], number: int, clients: int, down: str, up: str
) -> list[Traffic]:
    """What these sums sent, the work under these names, and keys and shares in lines of their own."""
    lines: list[tuple[str, Direction, list[Tally]]] = [
        (down, "down", [total.down for total in totals]),
        (up, "up", [total.up for total in totals]),
        (KEYS, "down", [total.keys_down for total in totals]),
        (KEYS, "up", [total.keys_up for total in totals]),
    ]
    return [
        Traffic(number, what, way, clients, sum(t.bytes for t in tallies), sum(t.numbers for t in tallies))
        for what, way, tallies in lines
    ]


@dataclass
class SecureSum:
    """One session at the server.

    Args:
        question: what every client is asked, with so many numbers of the model in it (`question_size`); its
            answer has `size` numbers.
        verify: whether a client signed a text, where the server knows; who did not sign its keys is left out.
    """

    ask: Ask
    terms: Terms
    rules: Rules
    question: bytes
    coding: FixedPoint
    size: int
    question_size: int = 0
    sites: Sequence[str] = ()
    verify: Verify | None = None
    lost: Lost = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.down, self.up, self.keys_down, self.keys_up = Tally(), Tally(), Tally(), Tally()
        self._numbers = np.zeros(self.size + TAIL, self.coding.dtype)

    def total(self) -> Total:
        """The sum.

        Raises:
            RunFailed: too few clients stayed, or what they sent does not fit together.
        """
        keys, signatures = self._keys()
        around = circle(self.terms, self.rules, keys)
        sealed, seeds = self._shares(keys, signatures, around)
        members = sorted(sealed)
        survivors = self._added(members, sealed, around)
        secrets_of = self._secrets(members, survivors, around, keys, seeds)
        self._take_off(members, survivors, around, keys, secrets_of)
        return self._decoded(survivors)

    def _keys(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        question = messages.pack_keys_question(self.terms)
        keys, signatures = dict[int, bytes](), dict[int, bytes]()
        template = {"keys": _bytes(BOTH_KEYS), "signature": _bytes(SIGNATURE_BYTES)}
        for client, _, tensors in self._answers("keys", self.terms.cohort, lambda client: question, template):
            public, signature = bytes(tensors["keys"].numpy()), bytes(tensors["signature"].numpy())
            fault = _key_fault(public, keys.values()) or self._signature_fault(client, public, signature)
            if fault is not None:
                self.lost[client] = fault
                continue
            keys[client], signatures[client] = public, signature
        self._check_enough(len(keys), "sent keys")
        return keys, signatures

    def _signature_fault(self, client: int, public: bytes, row: bytes) -> str | None:
        """Why everybody who knows this client's own key would refuse."""
        text = messages.keys_statement(self.terms.digest(self.rules), client, public)
        if self.verify is None or self.verify(client, messages.signature_of(row), text):
            return None
        return "its keys are not signed with the key that is registered for it"

    def _shares(
        self, keys: Mapping[int, bytes], signatures: Mapping[int, bytes], around: Circle
    ) -> tuple[dict[int, dict[int, bytes]], dict[int, str]]:
        """Sender -> holder -> the sealed pair; and each sender's commitment to its seed."""
        clients = sorted(keys)
        lists = {
            "clients": messages.ids(clients),
            "keys": messages.rows([keys[client] for client in clients], BOTH_KEYS),
            "signatures": messages.rows([signatures[client] for client in clients], SIGNATURE_BYTES),
        }
        question = pack_start(named("shares", self.terms), lists)
        template = {"sealed": _bytes(len(around.holders(clients[0])), SEALED)}
        sealed, seeds = {}, {}
        for client, facts, tensors in self._answers("shares", clients, lambda client: question, template):
            rows = messages.texts(tensors["sealed"])
            sealed[client] = dict(zip(around.holders(client), rows, strict=True))
            seeds[client] = str(facts.get("seed"))
        self._check_enough(len(sealed), "shared their secrets")
        return sealed, seeds

    def _added(
        self, members: list[int], sealed: Mapping[int, Mapping[int, bytes]], around: Circle
    ) -> list[int]:
        """Add up what clients send under their masks; those that did."""

        def message_to(client: int) -> bytes:
            senders = [other for other in around.holders(client) if other in sealed]
            rows = messages.rows([sealed[other][client] for other in senders], SEALED)
            lists = {"members": messages.ids(members), "from": messages.ids(senders), "sealed": rows}
            return messages.with_question(
                pack_start(named(self.terms.kind, self.terms), lists), self.question
            )

        dtype = torch.int32 if self.coding.bits == 32 else torch.int64
        template = {"masked": torch.empty(self.size + TAIL, dtype=dtype, device="meta")}
        survivors = []
        for client, _, tensors in self._answers(self.terms.kind, members, message_to, template):
            self._numbers += tensors["masked"].numpy().view(self.coding.dtype)
            survivors.append(client)
        self._check_enough(len(survivors), "sent their numbers")
        return sorted(survivors)

    def _secrets(
        self,
        members: list[int],
        survivors: list[int],
        around: Circle,
        keys: Mapping[int, bytes],
        seeds: Mapping[int, str],
    ) -> dict[int, bytes]:
        """Of each survivor the seed of its self-mask, of each lost member its mask key, from shares."""
        lost, left = [client for client in members if client not in survivors], set(survivors)
        lists = {"survivors": messages.ids(survivors), "lost": messages.ids(lost)}
        question, shares = pack_start(named("unmask", self.terms), lists), dict[int, dict[int, bytes]]()
        for holder, of in self._unmasked(question, survivors, members, around):
            for client, share in of.items():
                shares.setdefault(client, {})[holder] = share
        needed = holders_needed(self.terms, self.rules)
        found = {}
        for client in members:
            held = shares.get(client, {})
            if len(held) < needed:
                raise RunFailed(self._too_few(len(held), f"gave shares of {self._name(client)}", needed))

            def fits(secret: bytes, client: int = client) -> bool:
                if client in left:
                    return hashlib.sha256(secret).hexdigest() == seeds[client]
                return key_pair(secret).public == keys[client][KEY_BYTES:]

            found[client] = self._secret_of(client, [*held.items()], needed, fits)
        return found

    def _secret_of(
        self, client: int, held: list[tuple[int, bytes]], needed: int, fits: Callable[[bytes], bool]
    ) -> bytes:
        """The secret that the client committed itself to: of the first shares, or, as one holder may lie, of
        those that follow one another from the second on, and so forth."""
        for first in range(len(held)):
            some = (held[first:] + held[:first])[:needed]
            with suppress(UpdateRejected):
                if fits(secret := combine(dict(some))):
                    return secret
        raise SpoiledSum(self._wrong_shares(client), client)

    def _unmasked(
        self, question: bytes, survivors: list[int], members: list[int], around: Circle
    ) -> Iterator[tuple[int, dict[int, bytes]]]:
        """(holder, client -> its share), of each holder that answers."""
        known = set(members)
        held = {client: [c for c in around.holders(client) if c in known] for client in survivors}
        for outcome in self._counted("unmask", survivors, lambda client: question):
            template = {"shares": _bytes(len(held.get(outcome.client, ())), SHARE_BYTES)}
            if (answer := self._read("unmask", outcome, template)) is not None:
                rows = messages.texts(answer[1]["shares"])
                yield outcome.client, dict(zip(held[outcome.client], rows, strict=True))

    def _take_off(
        self,
        members: list[int],
        survivors: list[int],
        around: Circle,
        keys: Mapping[int, bytes],
        secrets_of: Mapping[int, bytes],
    ) -> None:
        """The self-masks of survivors, and what survivors added for masks shared with lost members."""
        terms = self.terms.digest(self.rules) + messages.digest_of(self.question)
        left = set(survivors)
        for client in members:
            if client in left:
                add_mask(self._numbers, derived(secrets_of[client], "self", terms, client), -1)
                continue
            others = [other for other in around.neighbours(client) if other in left]
            agreed = agree(secrets_of[client], [keys[other][KEY_BYTES:] for other in others])
            for other, secret in zip(others, agreed, strict=True):
                add_mask(self._numbers, pair_key(secret, terms, client, other), -sign_of(other, client))

    def _decoded(self, survivors: list[int]) -> Total:
        numbers, tail = self._numbers[: self.size], self._numbers[self.size :]
        low, high = (int(count) for count in tail[1:])
        of_loss = FixedPoint(self.coding.bits, LARGEST_LOSS, self.coding.addends)
        loss = float(of_loss.decoded(tail[:1])[0]) * self.terms.heaviest
        tallies = self.down, self.up, self.keys_down, self.keys_up
        return Total(
            self.coding.decoded(numbers), low + (high << 16), loss, survivors, dict(self.lost), *tallies
        )

    # Asking

    def _answers(
        self,
        kind: str,
        clients: Sequence[int],
        message_to: Callable[[int], bytes],
        template: Mapping[str, Tensor],
    ) -> Iterator[tuple[int, messages.Facts, dict[str, Tensor]]]:
        """Each client's answer of these tensors, once; who gives none is lost."""
        for outcome in self._counted(kind, clients, message_to):
            if (answer := self._read(kind, outcome, template)) is not None:
                yield outcome.client, *answer

    def _counted(
        self, kind: str, clients: Sequence[int], message_to: Callable[[int], bytes]
    ) -> Iterator[Outcome]:
        """Outcomes of clients that were asked, each one's first; bytes go into the tallies."""
        works, heard = kind == self.terms.kind, set[int]()
        down, up = (self.down, self.up) if works else (self.keys_down, self.keys_up)

        def counted(client: int) -> bytes:
            message = message_to(client)
            down.add(len(message), self.question_size if works else 0)
            return message

        for outcome in self.ask(kind, clients, counted):
            if outcome.client in heard or outcome.client not in clients:
                continue
            heard.add(outcome.client)
            if not isinstance(outcome, Failed):
                up.add(len(outcome.message), self.size if works else 0)
            yield outcome

    def _read(
        self, kind: str, outcome: Outcome, template: Mapping[str, Tensor]
    ) -> tuple[messages.Facts, dict[str, Tensor]] | None:
        try:
            if isinstance(outcome, Failed):
                raise UpdateRejected(outcome.reason)
            return messages.opened(outcome.message, template, named(kind, self.terms, client=outcome.client))
        except UpdateRejected as reason:
            self.lost.setdefault(outcome.client, printable(reason))
            return None

    # Failing

    def _check_enough(self, count: int, did: str) -> None:
        if count < (needed := clients_needed(self.terms, self.rules)):
            raise RunFailed(self._too_few(count, did, needed))

    def _too_few(self, count: int, did: str, needed: int) -> str:
        reasons = "; ".join(f"{self._name(c)}: {why}" for c, why in list(self.lost.items())[:3])
        return (
            f"{self._what()}: {count} of {len(self.terms.cohort)} clients {did}, secure aggregation needs "
            f"{needed} (federation.secure_aggregation.threshold){f' ({reasons})' if reasons else ''}; fix "
            "the clients and resume"
        )

    def _wrong_shares(self, client: int) -> str:
        return (
            f"{self._what()}: the shares of {self._name(client)} that its peers gave are not of what it "
            "committed itself to, so nothing can be unmasked"
        )

    def _what(self) -> str:
        return f"round {self.terms.number}" if self.terms.kind == "train" else f"start ({self.terms.kind})"

    def _name(self, client: int) -> str:
        return site_name(self.sites, client)


def _key_fault(public: bytes, others: Collection[bytes]) -> str | None:
    """Why everybody would refuse these keys."""
    if public in others:
        return "its keys are another client's"
    try:
        agree(key_pair().private, [public[:KEY_BYTES], public[KEY_BYTES:]])
    except UpdateRejected as reason:
        return str(reason)
    return None


def new_terms(kind: str, number: int, cohort: Iterable[int], heaviest: int = 1) -> Terms:
    """Terms of a session that there was none of before."""
    return Terms(kind, number, secrets.token_hex(16), tuple(sorted(cohort)), heaviest)


def _bytes(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device="meta")
