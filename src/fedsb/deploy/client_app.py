"""A Flower ClientApp around `node.Node`: it says hello, and it trains. A refusal is an answer, not a crash.

What went wrong with a party's own data or machine stays in its log: the text might quote the data.

The node's own config file is named by the SuperNode: `--node-config 'fedsb="/path/node.yaml"'`.
"""

from __future__ import annotations

import logging

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsb.common.printable import printable
from fedsb.deploy.identity import sign, statement
from fedsb.deploy.node_config import NodeConfig, Refused
from fedsb.deploy.open_node import OpenNode
from fedsb.deploy.questions import Question, read_question
from fedsb.deploy.records import Facts, pack
from fedsb.errors import FedsbError, UpdateRejected
from fedsb.federation.training import ClientFailed

log = logging.getLogger("flwr")
app = ClientApp()
held = OpenNode()
"""Flower may give this process one message or many."""


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Open the party; its number, its count of examples and its base model's digest."""
    return _reply(message, context, "hello")


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do what the question asks: train, or a step of the start."""
    return _reply(message, context, None)


def _reply(message: Message, context: Context, kind: str | None) -> Message:
    try:
        content = _answer(read_question(message, kind), context)
    except (Refused, UpdateRejected) as refusal:
        log.error("fedsb: %s", printable(str(refusal)))
        content = pack({"refusal": printable(str(refusal))})
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
        return printable(str(error))
    return f"this node failed ({type(error).__name__}); its own log says why"


def _answer(question: Question, context: Context) -> RecordDict:
    file = context.node_config.get("fedsb")
    if not file:
        raise Refused(
            "this SuperNode names no node config; start it with --node-config 'fedsb=\"/path/node.yaml\"'"
        )
    node = held.opened(question.kind, question.config, str(file), question.run)
    if question.kind == "hello":
        facts, payload = node.facts().said(), b""
    else:
        facts, payload = {}, node.answer(question.kind, question.payload)
    return pack(facts | _signature(node.node_config, question, facts, payload), payload)


def _signature(node: NodeConfig, question: Question, facts: Facts, payload: bytes) -> dict[str, bytes]:
    """By which the server knows whose answer this is; none if this party has no key."""
    if node.key is None:
        return {}
    asked = question.run, question.kind, question.nonce, question.node
    return {"signature": sign(node.key, statement(*asked, node.client, facts, payload))}
