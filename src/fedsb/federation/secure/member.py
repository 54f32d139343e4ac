"""A client's side of secure sums: what it answers to each question of a session, and what it refuses.

It gives one answer to each question, of each other client one kind of share, and no part of a sum over fewer
clients than its own minimum. What it holds between questions is `Held`, which a node keeps in a file.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedsb.errors import UpdateRejected
from fedsb.federation.secure import messages
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.masks import KEY_BYTES, add_mask, agree, derived, key_pair, seal, unsealed
from fedsb.federation.secure.messages import BOTH_KEYS, BYTES, LIST, SEALED, SIGNATURE_BYTES, named
from fedsb.federation.secure.shares import SECRET_BYTES, SHARE_BYTES, split
from fedsb.federation.secure.terms import (
    SMALLEST_COHORT,
    Circle,
    Rules,
    Terms,
    circle,
    clients_needed,
    holders_needed,
)
from fedsb.federation.start.messages import pack_start

MOST_SESSIONS = 3
"""Sums of one round that a client gives its part of: a server that was killed asks a round again."""
Sign = Callable[[bytes], bytes]
Verify = Callable[[int, bytes, bytes], bool]
"""(client, signature, text) -> whether that client signed it."""


@dataclass
class Held:
    """What a client holds of one session.

    Attributes:
        share_key, mask_key: private keys. seed: of the self-mask.
        keys: client -> its public keys. members: whose masks are in the sum.
        received: client -> its pair of shares. question: digest of what was asked.
        masked: whether the numbers were given. survivors: for whom shares of self-masks were.
    """

    terms: Terms
    share_key: bytes
    mask_key: bytes
    seed: bytes
    keys: dict[int, bytes] = field(default_factory=dict)
    members: tuple[int, ...] = ()
    received: dict[int, bytes] = field(default_factory=dict)
    question: bytes = b""
    masked: bool = False
    survivors: tuple[int, ...] = ()


@dataclass
class Member:
    """One client, over all sessions of a run.

    Attributes:
        fewest: clients whose sum it gives a part of, at least.
        sign: with the key that others know; None: nothing is signed.
        verify: None: the server's word is taken for whose keys are whose.
        given: kind -> (the last round of which it gave its part, in how many sessions).
    """

    client: int
    rules: Rules
    fewest: int = SMALLEST_COHORT
    sign: Sign | None = None
    verify: Verify | None = None
    held: Held | None = None
    given: dict[str, tuple[int, int]] = field(default_factory=dict)

    def answer(self, stage: str, question: bytes) -> bytes:
        """The answer to one of `messages.STAGES`.

        Raises:
            UpdateRejected: the question does not fit what was answered before, or asks for too much.
        """
        return {"keys": self.keys, "shares": self.shares, "unmask": self.unmask}[stage](question)

    def keys(self, question: bytes) -> bytes:
        """Fresh public keys, signed."""
        terms = messages.read_keys_question(question)
        self._check_terms(terms)
        share, mask = key_pair(), key_pair()
        self.held = Held(terms, share.private, mask.private, secrets.token_bytes(SECRET_BYTES))
        public = share.public + mask.public
        text = messages.keys_statement(terms.digest(self.rules), self.client, public)
        signature = messages.padded(self.sign(text) if self.sign else b"")
        tensors = {"keys": messages.rows([public], BOTH_KEYS)[0]}
        tensors["signature"] = messages.rows([signature], SIGNATURE_BYTES)[0]
        return pack_start(named("keys", terms, client=self.client), tensors)

    def _check_terms(self, terms: Terms) -> None:
        if self.client not in terms.cohort:
            raise UpdateRejected("secure aggregation: this client is not in the cohort that it is asked with")
        self._check_enough(terms, len(terms.cohort))
        last, times = self.given.get(terms.kind, (-1, 0))
        if terms.number < last or (terms.number == last and times >= MOST_SESSIONS):
            raise UpdateRejected(
                f"secure aggregation: this client gave its part of round {last} {times} times; it repeats no "
                f"earlier round, and none more than {MOST_SESSIONS} times"
            )

    def _check_enough(self, terms: Terms, count: int) -> None:
        """How many are left suffices for everybody's threshold, and for this client's own minimum."""
        least = max(self.fewest, clients_needed(terms, self.rules))
        if count < least:
            raise UpdateRejected(
                f"secure aggregation: {count} clients are in the sum, this client takes part in sums of "
                f"{least} or more (limits.smallest_cohort here, federation.secure_aggregation.threshold)"
            )

    def shares(self, question: bytes) -> bytes:
        """This client's secrets, in shares that their holders alone can read."""
        held, expected = self._held(), named("shares", self._held().terms)
        if held.keys:
            raise UpdateRejected("secure aggregation: the shares of this session were given")
        lists: messages.Lists = {
            "clients": (*LIST, "clients"),
            "keys": (BYTES, (BOTH_KEYS,), "clients"),
            "signatures": (BYTES, (SIGNATURE_BYTES,), "clients"),
        }
        _, tensors = messages.opened_lists(question, lists, expected)
        keys = dict(zip(tensors["clients"].tolist(), messages.texts(tensors["keys"]), strict=True))
        self._check_keys(keys, messages.texts(tensors["signatures"]))
        held.keys = keys
        sealed = self._sealed(held, _circle(held, self.rules))
        facts = named("shares", held.terms, client=self.client, seed=hashlib.sha256(held.seed).hexdigest())
        return pack_start(facts, {"sealed": messages.rows(sealed, SEALED)})

    def _check_keys(self, keys: Mapping[int, bytes], signatures: list[bytes]) -> None:
        held = self._held()
        if set(keys) - set(held.terms.cohort) or keys.get(self.client) != _public(held):
            raise UpdateRejected("secure aggregation: keys of clients that were not asked, or not this one's")
        if len(set(keys.values())) < len(keys):
            raise UpdateRejected("secure aggregation: two clients have the same keys")
        self._check_enough(held.terms, len(keys))
        digest = held.terms.digest(self.rules)
        for (client, public), row in zip(keys.items(), signatures, strict=True):
            text, signature = messages.keys_statement(digest, client, public), messages.signature_of(row)
            if self.verify is not None and not self.verify(client, signature, text):
                raise UpdateRejected(
                    f"secure aggregation: client {client} did not sign the keys said to be its"
                )

    def _sealed(self, held: Held, around: Circle) -> list[bytes]:
        """Each holder's pair of shares, in the holders' order."""
        holders, needed = around.holders(self.client), holders_needed(held.terms, self.rules)
        if len(holders) < needed:
            raise UpdateRejected("secure aggregation: too few clients hold this one's shares")
        pairs = (split(held.mask_key, holders, needed), split(held.seed, holders, needed))
        digest, agreed = held.terms.digest(self.rules), _agreed(held.share_key, held, holders, SHARE_KEY)
        return [
            seal(
                derived(agreed[other], "share", digest, self.client, other), pairs[0][other] + pairs[1][other]
            )
            for other in holders
        ]

    def opened(self, kind: str, message: bytes) -> bytes:
        """The question whose answer is to be added up, once the shares that came with it are taken in.

        Raises:
            UpdateRejected: as `answer`.
        """
        held = self._held()
        if held.masked or not held.keys or kind != held.terms.kind:
            raise UpdateRejected(
                "secure aggregation: this session's sum was answered, or is of something else"
            )
        lists: messages.Lists = {
            "members": (*LIST, "members"),
            "from": (*LIST, "from"),
            "sealed": (BYTES, (SEALED,), "from"),
        }
        told, question = messages.parted(message)
        _, tensors = messages.opened_lists(told, lists, named(kind, held.terms))
        members = self._checked_members(held, tensors["members"].tolist(), tensors["from"].tolist())
        asked = members, messages.digest_of(question)
        if held.question and asked != (held.members, held.question):
            raise UpdateRejected("secure aggregation: this session was asked another question before")
        held.members, held.question = asked
        digest, senders = held.terms.digest(self.rules), tensors["from"].tolist()
        agreed = _agreed(held.share_key, held, senders, SHARE_KEY)
        for other, sealed in zip(senders, messages.texts(tensors["sealed"]), strict=True):
            held.received[other] = self._unsealed(agreed[other], digest, other, sealed)
        return question

    def _unsealed(self, agreed: bytes, digest: bytes, other: int, sealed: bytes) -> bytes:
        """The pair of shares; of one that cannot be read nothing, at the cost of who sent it."""
        try:
            return unsealed(derived(agreed, "share", digest, other, self.client), sealed)
        except UpdateRejected:
            return bytes(2 * SHARE_BYTES)

    def _checked_members(self, held: Held, members: list[int], senders: list[int]) -> tuple[int, ...]:
        if set(members) - set(held.keys) or self.client not in members:
            raise UpdateRejected("secure aggregation: members whose keys are not known, or not this client")
        self._check_enough(held.terms, len(members))
        expected = [other for other in _circle(held, self.rules).holders(self.client) if other in members]
        if senders != expected or len(expected) < holders_needed(held.terms, self.rules):
            raise UpdateRejected("secure aggregation: shares of too few clients, or of others than expected")
        return tuple(members)

    def masked(self, integers: np.ndarray, coding: FixedPoint) -> bytes:
        """The integers under this client's masks.

        Raises:
            UpdateRejected: they were given before, perhaps others.
        """
        held = self._held()
        if held.masked or not held.question:
            raise UpdateRejected("secure aggregation: this session's sum was answered, or not asked for")
        held.masked = True
        numbers, terms = coding.wrapped(integers), held.terms.digest(self.rules) + held.question
        add_mask(numbers, derived(held.seed, "self", terms, self.client), 1)
        others = [n for n in _circle(held, self.rules).neighbours(self.client) if n in held.members]
        for other, secret in _agreed(held.mask_key, held, others, MASK_KEY).items():
            add_mask(numbers, pair_key(secret, terms, self.client, other), sign_of(self.client, other))
        signed = numbers.view(np.int32 if coding.bits == 32 else np.int64)
        facts = named(held.terms.kind, held.terms, client=self.client)
        return pack_start(facts, {"masked": torch.from_numpy(signed)})

    def unmask(self, question: bytes) -> bytes:
        """Of each client whose shares it holds, one share: of the self-mask if it is left, of the mask key
        if it is lost."""
        held = self._held()
        lists: messages.Lists = {"survivors": (*LIST, "survivors"), "lost": (*LIST, "lost")}
        _, tensors = messages.opened_lists(question, lists, named("unmask", held.terms))
        survivors, lost = (tuple(tensors[name].tolist()) for name in ("survivors", "lost"))
        self._check_survivors(held, survivors, lost)
        held.survivors = survivors
        held.share_key = held.mask_key = held.seed = b""
        last, times = self.given.get(held.terms.kind, (-1, 0))
        self.given[held.terms.kind] = (held.terms.number, times + 1 if held.terms.number == last else 1)
        given = [
            pair[SHARE_BYTES:] if other in survivors else pair[:SHARE_BYTES]
            for other, pair in sorted(held.received.items())
        ]
        facts = named("unmask", held.terms, client=self.client)
        return pack_start(facts, {"shares": messages.rows(given, SHARE_BYTES)})

    def _check_survivors(self, held: Held, survivors: tuple[int, ...], lost: tuple[int, ...]) -> None:
        if not held.masked:
            raise UpdateRejected("secure aggregation: this client gave no numbers to this session's sum")
        if set(survivors) & set(lost):
            raise UpdateRejected(
                "secure aggregation: both kinds of share of one client are asked for; refused"
            )
        if held.survivors and survivors != held.survivors:
            raise UpdateRejected(
                "secure aggregation: shares of this session were given for other survivors; another list "
                "would give both kinds of share of one client"
            )
        if sorted((*survivors, *lost)) != list(held.members) or self.client not in survivors:
            raise UpdateRejected("secure aggregation: survivors and lost are not the members of the sum")
        self._check_enough(held.terms, len(survivors))

    def _held(self) -> Held:
        if self.held is None:
            raise UpdateRejected("secure aggregation: there is no session; this client was started again")
        return self.held


def pair_key(secret: bytes, terms: bytes, client: int, other: int) -> bytes:
    """The key of the mask that two clients share, of what their mask keys agree on."""
    return derived(secret, "mask", terms, min(client, other), max(client, other))


def sign_of(client: int, other: int) -> int:
    """With which the client adds the mask that it shares with the other, who takes the opposite."""
    return 1 if client < other else -1


SHARE_KEY, MASK_KEY = slice(None, KEY_BYTES), slice(KEY_BYTES, None)
"""Where each of the two lies in a client's public keys."""


def _agreed(private: bytes, held: Held, others: Sequence[int], which: slice) -> dict[int, bytes]:
    """Other client -> the secret that this one's private key shares with it."""
    secrets_of = agree(private, [held.keys[other][which] for other in others])
    return dict(zip(others, secrets_of, strict=True))


def _public(held: Held) -> bytes:
    return key_pair(held.share_key).public + key_pair(held.mask_key).public


def _circle(held: Held, rules: Rules) -> Circle:
    return circle(held.terms, rules, held.keys)
