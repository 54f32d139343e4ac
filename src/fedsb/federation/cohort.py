"""Which clients take part in a round, and which heads of the core a weak client trains in it."""

from __future__ import annotations

import numpy as np

from fedsb.common.seeding import numpy_generator


def cohort(num_clients: int, clients_per_round: int | None, seed: int, number: int) -> list[int]:
    """Client ids of the round of this number, ascending: all, or a uniform sample without replacement."""
    if clients_per_round is None or clients_per_round >= num_clients:
        return list(range(num_clients))
    return _some(num_clients, clients_per_round, numpy_generator(seed, "cohort", number))


def trained_heads(heads: int, trained: int, rng: np.random.Generator) -> tuple[int, ...] | None:
    """A uniform choice of heads, as RAVAN's random rule (arXiv 2506.05568); None if it is all of them."""
    return None if trained >= heads else tuple(_some(heads, trained, rng))


def _some(total: int, count: int, rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(total, count, replace=False).tolist())
