"""What one secure sum is about: rules of the run, terms of the session, who holds whose shares.

All of it goes, as one digest, into every mask: between clients that were told different things masks do not
cancel, and the sum is noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

SMALLEST_COHORT = 2
"""The sum over one client would be that client's."""
EVERYBODY = 50
"""Up to so many clients each shares a mask with all others; beyond, with some (Bell et al. 2020)."""
COLLUDING, LOST = 0.1, 0.15
"""Shares of a large cohort for which the number of neighbours is made."""
UNSAFE, FAILS = 2.0**-40, 2.0**-30
"""Chances that some client's neighbours hide it too little, or keep too few shares of it."""


@dataclass(frozen=True)
class Rules:
    """What server and clients know of a run.

    Attributes:
        run: names it.
        threshold: share of the cohort that must stay; a number above 1: so many clients.
        largest: magnitude of a number of an update, less the broadcast, beyond which it is cut.
        fewest: clients that must stay whatever the threshold, since their noise is planned for.
    """

    run: str
    threshold: float
    largest: float
    fewest: int = 0

    def needed(self, cohort: int, holders: int) -> int:
        """Of so many holders of a client's shares, how many give its secrets: always more than half, so that
        no two groups of honest clients can be told different lists."""
        share = min(1.0, self.threshold / cohort) if self.threshold > 1 else self.threshold
        return max(SMALLEST_COHORT, round(share * holders), holders // 2 + 1)


@dataclass(frozen=True)
class Terms:
    """One session.

    Attributes:
        kind: the question whose answers are added.
        number: of the round.
        session: 32 hexadecimal digits that no other session has.
        cohort: who is asked, ascending.
        heaviest: the largest weight of any; 1 where all weigh the same.
    """

    kind: str
    number: int
    session: str
    cohort: tuple[int, ...]
    heaviest: int = 1

    def digest(self, rules: Rules) -> bytes:
        """32 bytes that differ where anything does."""
        parts = [rules.run, rules.threshold, rules.largest, rules.fewest]
        parts += [self.kind, self.number, self.session, self.cohort, self.heaviest]
        return hashlib.sha256(json.dumps(parts).encode()).digest()


@dataclass(frozen=True)
class Circle:
    """Who shares masks, and so holds shares, with whom.

    Attributes:
        order: everybody whose keys are known; each one's neighbours are the nearest on both sides.
        reach: how many on each side.
    """

    order: tuple[int, ...]
    reach: int

    @cached_property
    def _place(self) -> dict[int, int]:
        return {client: place for place, client in enumerate(self.order)}

    def holders(self, client: int) -> tuple[int, ...]:
        """Holders of this client's shares, itself among them, ascending."""
        place, size = self._place[client], len(self.order)
        if 2 * self.reach + 1 >= size:
            return tuple(sorted(self.order))
        steps = range(-self.reach, self.reach + 1)
        return tuple(sorted(self.order[(place + step) % size] for step in steps))

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Who shares masks with this client."""
        return tuple(other for other in self.holders(client) if other != client)


def circle(terms: Terms, rules: Rules, keys: Mapping[int, bytes]) -> Circle:
    """The circle in an order that everybody's fresh keys decide, so that no one client chooses its neighbours
    (a random Harary graph, as Bell et al. 2020, eprint 2020/704)."""
    together = hashlib.sha256(b"".join(keys[client] for client in sorted(keys))).digest()

    def drawn(client: int) -> bytes:
        return hashlib.sha256(together + b"%d" % client).digest()

    return Circle(tuple(sorted(keys, key=drawn)), reach(len(terms.cohort), rules))


def reach(cohort: int, rules: Rules) -> int:
    """Neighbours on each side in a cohort of this size."""
    if cohort <= EVERYBODY:
        return (cohort + 1) // 2
    return _reach(cohort, rules)


@lru_cache(maxsize=64)
def _reach(cohort: int, rules: Rules) -> int:
    """The fewest with which a tenth of the cohort may collude and 15 % be lost: then, but for tiny chances,
    nobody's colluding neighbours suffice to be told two lists, and everybody's secrets can be rebuilt."""
    from scipy.stats import hypergeom

    others, colluding, lost = cohort - 1, round(COLLUDING * cohort), round(LOST * cohort)
    for side in range(12, cohort // 2):
        holders = 2 * side + 1
        needed = rules.needed(cohort, holders)
        unsafe = cohort * hypergeom.sf(2 * needed - holders - 1, others, colluding, holders - 1)
        fails = cohort * hypergeom.sf(holders - needed, others, lost, holders - 1)
        if unsafe <= UNSAFE and fails <= FAILS:
            return side
    return cohort // 2


def holders_needed(terms: Terms, rules: Rules) -> int:
    """How many holders of a client's shares give its secrets."""
    cohort = len(terms.cohort)
    return rules.needed(cohort, min(cohort, 2 * reach(cohort, rules) + 1))


def clients_needed(terms: Terms, rules: Rules) -> int:
    """How many clients of the cohort must stay to the end."""
    return max(rules.fewest, rules.needed(len(terms.cohort), len(terms.cohort)))
