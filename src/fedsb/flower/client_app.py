"""A Flower ClientApp around `node.Node`: it says hello, and it trains. A refusal is an answer, not a crash.

What went wrong with a party's own data or machine stays in its log: the text might quote the data.

The node's own config file is named by the SuperNode: `--node-config 'fedsb="/path/node.yaml"'`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsb.client import ClientFailed
from fedsb.config import RunConfig
from fedsb.errors import FedsbError, UpdateRejected
from fedsb.flower.records import facts_of, pack, payload_of
from fedsb.held_node import HELLO, HeldNode
from fedsb.node import Node
from fedsb.node_config import Refused
from fedsb.section import checked

log = logging.getLogger("flwr")
app = ClientApp()
held = HeldNode()
"""Flower may give this process one message or many."""


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Open the party; its number, its count of examples and its base model's digest."""
    return _reply(message, context, HELLO, lambda node: pack(asdict(node.facts())))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do what the question asks: train, or a step of the start."""
    kind, question = str(facts_of(message.content).get("kind")), payload_of(message.content)
    return _reply(message, context, kind, lambda node: pack({}, node.answer(kind, question)))


def _reply(message: Message, context: Context, kind: str, work: Callable[[Node], RecordDict]) -> Message:
    try:
        content = work(_node(message, context, kind))
    except (Refused, UpdateRejected) as refusal:
        log.error("fedsb: %s", refusal)
        content = pack({"refusal": str(refusal)})
    except Exception as error:
        foreseen = isinstance(error, FedsbError | ClientFailed)
        log.error("fedsb: %s", error, exc_info=not foreseen)
        held.drop()
        held.spoiled = not foreseen
        content = pack({"refusal": _told(error)})
    return Message(content, reply_to=message)


def _told(error: Exception) -> str:
    """What the server may know of a failure."""
    if isinstance(error, ClientFailed):
        return str(error)
    return f"this node failed ({type(error).__name__}); its own log says why"


def _node(message: Message, context: Context, kind: str) -> Node:
    own = context.node_config.get("fedsb")
    if not own:
        raise Refused(
            "this SuperNode names no node config; start it with --node-config 'fedsb=\"/path/node.yaml\"'"
        )
    facts = facts_of(message.content)
    config = checked(RunConfig, json.loads(str(facts["config"])), "the server's config")
    return held.opened(kind, config, str(own), str(facts["run"]))
