"""How a server reaches its clients: it asks a cohort, and answers come as they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from fedsb.party import Party
from fedsb.progress import Progress
from fedsb.server import Outcome
from fedsb.simulate import simulate_cohort

Peers = Callable[[Sequence[int], Callable[[int], bytes]], Iterable[Outcome]]
"""(cohort, client -> its broadcast, made when it is about to be sent) -> one outcome for each client."""


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
