"""How a server reaches its clients: it asks a cohort, and answers come as they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from fedsb.federation.server import Failed, Outcome
from fedsb.federation.simulate import simulate_cohort
from fedsb.report.progress import Progress
from fedsb.runner.party import Party
from fedsb.runner.private_run import PrivateRun

MessageTo = Callable[[int], bytes]
"""Client -> its message, made when it is about to be sent."""
Peers = Callable[[Sequence[int], MessageTo], Iterable[Outcome]]
"""(cohort, client -> its broadcast) -> one outcome for each client, as they come."""
Kind = Literal["hello", "warm-up", "contribute", "bases", "train"]
"""Every question that a node answers; `node.QUESTIONS` has the answer of each."""
Ask = Callable[[Kind, Sequence[int], MessageTo], Iterable[Outcome]]
"""As `Peers`, for every kind of question."""


@dataclass(frozen=True)
class Remote:
    """Clients on other machines.

    Attributes:
        sizes: training examples of each, by client.
        base_digest: of the base model they have; None if they were not asked.
    """

    sizes: Sequence[int]
    ask: Ask
    base_digest: str | None = None

    @property
    def parts(self) -> list[list[int]]:
        """Each client's examples, counted through."""
        ends = list(accumulate(self.sizes, initial=0))
        return [list(range(start, end)) for start, end in pairwise(ends)]


def expecting(private: PrivateRun, peers: Peers, number: int) -> Peers:
    """Peers elsewhere whose answers cost privacy: asked only if they can pay by the server's account."""

    def ask(cohort: Sequence[int], broadcast: MessageTo) -> Iterator[Outcome]:
        able = [client for client in cohort if private.expect(client, number)]
        yield from (Failed(client, private.used_up) for client in cohort if client not in able)
        yield from peers(able, broadcast)

    return ask


def simulated(party: Callable[[int], Party], progress: Progress) -> Peers:
    """Peers in this process; `party(client)` is made when its turn comes."""

    def ask(cohort: Sequence[int], broadcast: MessageTo) -> Iterator[Outcome]:
        def update(client: int) -> bytes:
            own = party(client)
            progress.client_begins(client, round(own.training.epochs * len(own.examples)))
            return own.answer(broadcast(client), progress.step)

        for outcome in simulate_cohort(cohort, update):
            progress.client_ends(outcome.client, getattr(outcome, "reason", None))
            yield outcome

    return ask
