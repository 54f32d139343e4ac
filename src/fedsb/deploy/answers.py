"""A node's answer, read as from somebody hostile: what it says, or one short reason why it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message

from fedsb.common.printable import printable
from fedsb.deploy.node import NodeFacts
from fedsb.deploy.records import Facts, facts_of, payload_of
from fedsb.errors import UpdateRejected

MOST_FACTS, LONGEST_FACT = 8, 1_000
MOST_EXAMPLES = 10_000_000
"""The most of one client: the server makes lists as long as all examples together."""


@dataclass(frozen=True)
class Said:
    """What an answer holds; `facts` are without the signature, which is empty if there is none."""

    facts: Facts
    payload: bytes
    signature: bytes


def read_answer(reply: Message) -> Said:
    """What a reply without an error of Flower's says.

    Raises:
        UpdateRejected: it is a refusal, or cannot be read.
    """
    try:
        return _said(reply)
    except UpdateRejected:
        raise
    except Exception as error:
        raise UpdateRejected(f"its answer cannot be read ({type(error).__name__})") from error


def node_facts(facts: Mapping[str, object], clients: int) -> NodeFacts:
    """What an answer to hello says of a node of a run with so many clients.

    Raises:
        UpdateRejected: a fact is missing, of another kind, or too large.
    """
    names = ("client", "num_examples", "base_digest", "experts", "test_examples")
    client, count, digest, experts, tests = (facts.get(name) for name in names)
    if set(names[:3]) - set(facts) or set(facts) - set(names) or not _fits(digest, "[0-9a-f]{16}"):
        raise UpdateRejected("its hello is not client, num_examples and a base_digest of 16 hex digits")
    if "experts" in facts and not _fits(experts, r"\d{1,8}(,\d{1,8})+"):
        raise UpdateRejected("its experts are not two or more counts")
    return NodeFacts(
        _count("client", client, 0, clients - 1),
        _count("num_examples", count, 1, MOST_EXAMPLES),
        str(digest),
        str(experts or ""),
        _count("test_examples", tests, 0, MOST_EXAMPLES) if "test_examples" in facts else None,
    )


def _fits(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _count(name: str, count: object, least: int, most: int) -> int:
    if isinstance(count, int) and not isinstance(count, bool) and least <= count <= most:
        return count
    raise UpdateRejected(f"its {name} is not a whole number from {least} to {most}")


def _said(reply: Message) -> Said:
    facts = facts_of(reply.content)
    if "refusal" in facts:
        text = facts["refusal"]
        raise UpdateRejected(printable(text) if isinstance(text, str) else "a refusal that is no text")
    signature = facts.pop("signature", b"")
    if not isinstance(signature, bytes) or len(signature) > LONGEST_FACT:
        raise UpdateRejected("its signature is none")
    return Said(_small(facts), payload_of(reply.content), signature)


def _small(facts: Mapping[str, object]) -> Facts:
    """The facts, if they are few and short."""
    small: dict[str, str | int | float] = {}
    for name, value in list(facts.items())[: MOST_FACTS + 1]:
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST_FACT):
            small[name] = value
    if len(small) != len(facts) or any(len(name) > LONGEST_FACT for name in small):
        raise UpdateRejected("its facts are too many, too long, or not of our kinds")
    return small
