"""A server's question, read at the node as from somebody hostile: bounded before anything is made of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from flwr.app import Message

from fedsb.common.printable import printable
from fedsb.config import RunConfig
from fedsb.config.base import checked
from fedsb.deploy.node_config import Refused
from fedsb.deploy.records import facts_of, payload_of
from fedsb.errors import InputError

LARGEST_CONFIG = 1_000_000
"""Characters of a run's config as it travels."""
LONGEST_FACT = 200
LARGEST_INTEGER = 2**128
"""The largest magnitude in a config."""


@dataclass(frozen=True)
class Question:
    """What a server asks.

    Attributes:
        nonce, node: to be signed with the answer: empty from a server that gave none, and this node's id.
    """

    kind: str
    config: RunConfig
    run: str
    nonce: str
    node: int
    payload: bytes


def read_question(message: Message, kind: str | None = None) -> Question:
    """The question; `kind`: what kind it is, where that is known.

    Raises:
        Refused: a fact is missing, too long or not text, or the config is none.
        UpdateRejected: the payload is none.
    """
    if not message.has_content():
        raise Refused("the server's question: it has no content")
    facts = facts_of(message.content)
    config = _config(_text(facts, "config", LARGEST_CONFIG))
    run, nonce = _text(facts, "run"), _text(facts, "nonce") if "nonce" in facts else ""
    kind, node = kind or _text(facts, "kind"), message.metadata.dst_node_id
    return Question(kind, config, run, nonce, node, payload_of(message.content))


def _text(facts: dict[str, object], name: str, longest: int = LONGEST_FACT) -> str:
    value = facts.get(name)
    if isinstance(value, str) and len(value) <= longest:
        return value
    raise Refused(
        f"the server's question: its {name} is missing, no text, or longer than {longest} characters"
    )


def _config(text: str) -> RunConfig:
    try:
        values = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_integer)
        if not isinstance(values, dict):
            raise Refused("the server's config: expected keys and their values, found something else")
        return checked(RunConfig, values, "the server's config")
    except InputError as reason:
        raise Refused(printable(str(reason))) from None
    except Exception as error:  # nothing of this party's is looked at here
        raise Refused(f"the server's config is not JSON of our kind ({type(error).__name__})") from None


def _integer(text: str) -> int:
    number = int(text)
    if abs(number) >= LARGEST_INTEGER:
        raise ValueError(text)
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
