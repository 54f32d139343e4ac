"""How a server reaches its clients: it asks a cohort, and answers come as they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fedsb.party import Party
from fedsb.private_run import PrivateRun
from fedsb.progress import Progress
from fedsb.server import Failed, Outcome
from fedsb.simulate import simulate_cohort

Peers = Callable[[Sequence[int], Callable[[int], bytes]], Iterable[Outcome]]
"""(cohort, client -> its broadcast, made when it is about to be sent) -> one outcome for each client."""


@dataclass(frozen=True)
class Remote:
    """Clients on other machines.

    Attributes:
        sizes: training examples of each, by client.
        base_digest: of the base model they have; None if they were not asked.
    """

    sizes: Sequence[int]
    peers: Peers
    base_digest: str | None = None


def expecting(private: PrivateRun, peers: Peers, number: int) -> Peers:
    """Peers elsewhere whose answers cost privacy: asked only if they can pay by the server's account."""

    def ask(cohort: Sequence[int], broadcast: Callable[[int], bytes]) -> Iterator[Outcome]:
        able = [client for client in cohort if private.expect(client, number)]
        yield from (Failed(client, private.used_up) for client in cohort if client not in able)
        yield from peers(able, broadcast)

    return ask


def simulated(party: Callable[[int], Party], progress: Progress) -> Peers:
    """Peers in this process; `party(client)` is made when its turn comes."""

    def ask(cohort: Sequence[int], broadcast: Callable[[int], bytes]) -> Iterator[Outcome]:
        def update(client: int) -> bytes:
            own = party(client)
            progress.client_begins(client, round(own.training.epochs * len(own.examples)))
            return own.answer(broadcast(client), progress.step)

        for outcome in simulate_cohort(cohort, update):
            progress.client_ends(outcome.client, getattr(outcome, "reason", None))
            yield outcome

    return ask
