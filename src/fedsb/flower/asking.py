"""One question to many nodes over Flower: answers as they come, and a second question where one was lost.

Flower tells of a client process that died (about a minute later), and of a node that went away. Of a node
that came back before anybody looked, with the question forgotten, it tells nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedsb.flower.records import facts_of

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""How often is looked which nodes are connected."""
REMIND_SECONDS = 300.0
PULLED_AT_ONCE = 8
"""Answers that may be in the server's memory together."""
PROCESS_DIED = 8
"""Flower's code for a client process that stopped before it answered."""

Answer = Message | str
"""What a node sent, or why there is nothing."""


@dataclass
class Asking:
    """One question on its way.

    Args:
        send: sends it to nodes; (the message's id, node), the id empty if Flower takes none for that node.
        say: where a line about the nodes goes.
        again: whether a lost question may be asked once more. Not where each answer costs privacy: the first
            may have been paid for.

    Attributes:
        waiting: message id -> the node that is to answer it.
    """

    grid: Grid
    send: Callable[[Iterable[int]], Iterable[tuple[str, int]]]
    say: Callable[[str], None]
    again: bool
    waiting: dict[str, int] = field(default_factory=dict)
    _asked_again: set[int] = field(default_factory=set)
    _away: set[int] = field(default_factory=set)

    def answers(self, nodes: Iterable[int], seconds: float | None) -> Iterator[tuple[int, Answer]]:
        """(node, what came of it) for each node, until all have answered or the time is up."""
        yield from ((node, "its node is not connected") for node in self._lost(nodes))
        began = looked = reminded = time.monotonic()
        while self.waiting:
            yield from self._arrived()
            now = time.monotonic()
            if seconds is not None and now - began > seconds:
                yield from ((node, f"no answer within {seconds:g} s") for node in self.waiting.values())
                return
            if now - looked >= LOOK_SECONDS:
                looked = now
                yield from self._forgotten()
            if now - reminded >= REMIND_SECONDS:
                reminded = now
                self._remind(now - began)
            if self.waiting:
                time.sleep(POLL_SECONDS)

    def _lost(self, nodes: Iterable[int]) -> list[int]:
        """Send it to these nodes; those that Flower does not take it for."""
        sent = list(self.send(nodes))
        self.waiting |= {name: node for name, node in sent if name}
        return [node for name, node in sent if not name]

    def _arrived(self) -> Iterator[tuple[int, Answer]]:
        waiting = list(self.waiting)
        for start in range(0, len(waiting), PULLED_AT_ONCE):
            for reply in self.grid.pull_messages(waiting[start : start + PULLED_AT_ONCE]):
                node = self.waiting.pop(reply.metadata.reply_to_message_id)
                died = reply.has_error() and reply.error.code == PROCESS_DIED
                if not (died and self._once_more(node, "its client process died")):
                    yield node, _refusal(reply) or reply

    def _forgotten(self) -> Iterator[tuple[int, Answer]]:
        """Ask nodes again that went away and came back without an answer."""
        online = set(self.grid.get_node_ids())
        for name, node in list(self.waiting.items()):
            if node not in online:
                self._away.add(node)
            elif node in self._away:
                self._away.discard(node)
                del self.waiting[name]
                if not self._once_more(node, "it was away and came back"):
                    yield node, "its node went away and came back without an answer"

    def _once_more(self, node: int, why: str) -> bool:
        if not self.again or node in self._asked_again:
            return False
        self._asked_again.add(node)
        self.say(f"node {node}: {why}; asking it again")
        return not self._lost([node])

    def _remind(self, seconds: float) -> None:
        nodes = ", ".join(map(str, self.waiting.values()))
        self.say(f"waiting for node {nodes} for {seconds:.0f} s (federation.deadline_seconds sets an end)")


def _refusal(reply: Message) -> str | None:
    if reply.has_error():
        return f"Flower error {reply.error.code}: {str(reply.error.reason)[:300]}"
    return facts_of(reply.content).get("refusal")  # type: ignore[return-value]
