"""Flower without its processes: the real ClientApp answers in this one, and answers may be harmed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedsb.deploy import client_app

Harm = Callable[[int, Message], Message | None]


@dataclass
class FakeGrid:
    """`node_configs`: node id -> path of its own config file.

    Attributes:
        harm: (node, its reply) -> what arrives in its place; None: nothing does.
        fetched: what happens while this node's answer is fetched, in Flower's own code.
        pushed: (node, kind) of every question.
    """

    node_configs: dict[int, str]
    harm: Harm = lambda node, reply: reply
    run_id: int = 1
    fetched: dict[int, Callable[[], None]] = field(default_factory=dict)
    pushed: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids, self._replies, self._asked = count(1), {}, {}
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # a process of Flower's has one

    def get_node_ids(self) -> list[int]:
        return list(self.node_configs)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = [name for name in message_ids if name in self._replies]
        for name in names:
            self.fetched.get(self._asked.get(name), lambda: None)()
        return [self._replies.pop(name) for name in names]

    def _deliver(self, message: Message) -> str:
        node, name = message.metadata.dst_node_id, str(next(self._ids))
        message.metadata.__dict__["_message_id"] = name
        self.pushed.append((node, message.metadata.message_type))
        self._asked[name] = node
        if node in self.node_configs:
            context = Context(1, node, {"fedsb": self.node_configs[node]}, RecordDict(), {})
            reply = client_app.app(message, context)
        else:
            reply = Message(Error(3, "node unavailable"), reply_to=message)
        arrives = self.harm(node, reply)
        if arrives is not None:
            self._replies[name] = arrives
        return name
