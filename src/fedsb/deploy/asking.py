"""One question to many nodes over Flower: answers as they come, and a second question where one was lost.

Flower tells of a client process that died (about a minute later), and of a node that went away. Of a node
that came back before anybody looked, with the question forgotten, it tells nothing.

Answers are fetched one at a time, each in a thread: Flower makes objects of what a node sent while it fetches
it, so a hostile answer may raise there, name another's question, or have an upload that never ends. Each of
these is the failure of the node that was asked, and holds up nobody else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from fedsb.common.printable import printable

POLL_SECONDS = 0.5
"""Between two looks for answers, for every POLLED_AT_ONCE that are waited for."""
POLLED_AT_ONCE = 8
LOOK_SECONDS = 2.0
"""How often is looked which nodes are connected."""
REMIND_SECONDS = 300.0
DEADLINE_SECONDS = 3600.0
"""For answers, where the config sets none."""
FETCH_SECONDS = 10.0
"""An answer whose upload takes longer is fetched beside the others."""
PROCESS_DIED = 8
"""Flower's code for a client process that stopped before it answered."""

log = logging.getLogger("flwr")
Answer = Message | str
"""What a node sent, or why there is nothing."""


class _Asked(NamedTuple):
    """A node that is to answer, for how long, and when that is over."""

    node: int
    seconds: float
    until: float


@dataclass
class Question:
    """One question on its way.

    Args:
        send: sends it to nodes; (the message's id, node), the id empty if Flower takes none for that node.
        say: where a line about the nodes goes.
        again: whether a lost question may be asked once more. Not where each answer costs privacy: the first
            may have been charged.

    Attributes:
        waiting: message id -> who is to answer it.
    """

    grid: Grid
    send: Callable[[Iterable[int]], Iterable[tuple[str, int]]]
    say: Callable[[str], None]
    again: bool
    waiting: dict[str, _Asked] = field(default_factory=dict)
    _fetches: dict[str, Future[Iterable[Message]]] = field(default_factory=dict)
    _asked_again: set[int] = field(default_factory=set)
    _away: set[int] = field(default_factory=set)
    _looked: float = field(default_factory=time.monotonic)

    def answers(self, nodes: Iterable[int], seconds: float | None) -> Iterator[tuple[int, Answer]]:
        """(node, what came of it) for each node, until all have answered or the time is up.

        Args:
            seconds: None: DEADLINE_SECONDS.
        """
        seconds = seconds or DEADLINE_SECONDS
        yield from self.ask(nodes, seconds)
        began = reminded = time.monotonic()
        while self.waiting:
            yield from self.look()
            now = time.monotonic()
            if self.waiting and now - reminded >= REMIND_SECONDS:
                reminded = now
                self._remind(now - began, seconds)
            if self.waiting:
                time.sleep(POLL_SECONDS * max(1.0, len(self.waiting) / POLLED_AT_ONCE))

    def ask(self, nodes: Iterable[int], seconds: float) -> list[tuple[int, Answer]]:
        """Send it to these nodes; those that Flower does not take it for."""
        return self._sent(nodes, seconds, time.monotonic() + seconds)

    def look(self) -> Iterator[tuple[int, Answer]]:
        """What came since the last look; waits for nobody."""
        yield from self._arrived()
        now = time.monotonic()
        for name in [name for name, asked in self.waiting.items() if now > asked.until]:
            asked = self._no_longer(name)
            yield asked.node, f"no answer within {asked.seconds:g} s"
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            yield from self._forgotten()

    def _sent(self, nodes: Iterable[int], seconds: float, until: float) -> list[tuple[int, Answer]]:
        sent = list(self.send(nodes))
        self.waiting |= {name: _Asked(node, seconds, until) for name, node in sent if name}
        return [(node, "its node is not connected") for name, node in sent if not name]

    def _no_longer(self, name: str) -> _Asked:
        self._fetches.pop(name, None)
        return self.waiting.pop(name)

    def _arrived(self) -> Iterator[tuple[int, Answer]]:
        for name in list(self.waiting):
            answer = self._fetched(name)
            if answer is None:
                continue
            asked, error = self._no_longer(name), _error(answer)
            died = error is not None and error[0] == PROCESS_DIED
            if not (died and self._once_more(asked, "its client process died")):
                yield asked.node, answer if error is None else f"Flower error {error[0]}: {error[1]}"

    def _fetched(self, name: str) -> Answer | None:
        fetch, patience = self._fetches.pop(name, None), 0.0
        if fetch is None:
            fetch, patience = _in_a_thread(partial(self.grid.pull_messages, [name])), FETCH_SECONDS
        if not wait([fetch], patience).done:
            self._fetches[name] = fetch
            return None
        if (error := fetch.exception()) is not None:
            log.error("fedsb: the answer of node %s cannot be read", self.waiting[name].node, exc_info=error)
            return f"its answer cannot be read ({type(error).__name__})"
        return next((r for r in fetch.result() if r.metadata.reply_to_message_id == name), None)

    def _forgotten(self) -> Iterator[tuple[int, Answer]]:
        """Ask nodes again that went away and came back without an answer."""
        online = set(self.grid.get_node_ids())
        for name, asked in list(self.waiting.items()):
            if asked.node not in online:
                self._away.add(asked.node)
            elif asked.node in self._away:
                self._away.discard(asked.node)
                self._no_longer(name)
                if not self._once_more(asked, "it was away and came back"):
                    yield asked.node, "its node went away and came back without an answer"

    def _once_more(self, asked: _Asked, why: str) -> bool:
        if not self.again or asked.node in self._asked_again:
            return False
        self._asked_again.add(asked.node)
        self.say(f"node {asked.node}: {why}; asking it again")
        return not self._sent([asked.node], asked.seconds, asked.until)

    def _remind(self, waited: float, seconds: float) -> None:
        nodes = ", ".join(str(asked.node) for asked in self.waiting.values())
        self.say(
            f"waiting for node {nodes} for {waited:.0f} s, for {seconds:g} s at most "
            "(federation.deadline_seconds)"
        )


def _in_a_thread(work: Callable[[], Iterable[Message]]) -> Future[Iterable[Message]]:
    """The work's future. Its thread ends with the process, unlike those of an executor."""
    future: Future[Iterable[Message]] = Future()

    def do() -> None:
        try:
            future.set_result(list(work()))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future


def _error(answer: Answer) -> tuple[int, str] | None:
    """Code and text of an error that Flower tells of in place of an answer."""
    if isinstance(answer, str) or not answer.has_error():
        return None
    return answer.error.code, printable(str(answer.error.reason))
