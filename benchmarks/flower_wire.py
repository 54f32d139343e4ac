"""Flower's own serialization without its processes: what it would send, and a grid that hands it back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # a process of Flower's has one


def objects_of(message: Message) -> dict[str, bytes]:
    """Everything that travels of a message, by object id: what Flower pushes and pulls."""
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def write_reply(file: Path, message: Message) -> None:
    """A reply as it lies at the SuperLink."""
    objects = objects_of(message)
    index = json.dumps([message.object_id, {name: len(body) for name, body in objects.items()}]).encode()
    file.write_bytes(len(index).to_bytes(8, "little") + index + b"".join(objects.values()))


def read_reply(file: Path) -> Message:
    """As a ServerApp gets it: bytes, then objects made of them."""
    with open(file, "rb") as stream:
        name, sizes = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        objects = {part: stream.read(size) for part, size in sizes.items()}
    return inflate_object_from_contents(name, objects)


class StoredGrid:
    """A SuperLink with one written reply for each node. A push does what Flower does before its request."""

    def __init__(self, replies: Sequence[Path]):
        self.replies = {100 + i: file for i, file in enumerate(replies)}
        self._waiting: dict[str, int] = {}
        self._stored: set[str] = set()
        self._ids = count(1)

    def get_node_ids(self) -> list[int]:
        return list(self.replies)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = []
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_message_id"] = name = str(next(self._ids))
                for part, value in get_all_nested_objects(message).items():
                    if part not in self._stored:  # what the SuperLink has is not sent again
                        value.deflate()
                        self._stored.add(part)
                get_object_tree(message)
                self._waiting[name] = message.metadata.dst_node_id
                sent.append(name)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._pull(name) for name in list(message_ids) if name in self._waiting]

    def _pull(self, name: str) -> Message:
        reply = read_reply(self.replies[self._waiting.pop(name)])
        reply.metadata.__dict__["_reply_to_message_id"] = name
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))
