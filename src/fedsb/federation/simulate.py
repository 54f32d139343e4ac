"""Many clients over one frozen base in one process: each is trained in turn and costs only its vector."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from fedsb.errors import UpdateRejected
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.federation.training import ClientFailed

log = logging.getLogger(__name__)


def simulate_cohort(cohort: Sequence[int], update: Callable[[int], bytes]) -> Iterator[Outcome]:
    """`update(client)` for each client in turn, as outcomes; a client that raises has failed.

    Any exception of one client's training counts as that client's failure, as it would if the client
    ran elsewhere. KeyboardInterrupt and SystemExit go through.
    """
    for client in cohort:
        try:
            yield Arrived(client, update(client))
        except (ClientFailed, UpdateRejected) as reason:
            yield Failed(client, str(reason))
        except Exception as error:
            log.debug("client %d failed", client, exc_info=True)
            yield Failed(client, f"{type(error).__name__}: {error}")
