"""Which clients take part in a round, and which heads of the core a weak client trains in it."""

from __future__ import annotations

import numpy as np


def cohort(num_clients: int, clients_per_round: int | None, rng: np.random.Generator) -> list[int]:
    """Client ids of one round, ascending: all, or a uniform sample without replacement."""
    if clients_per_round is None or clients_per_round >= num_clients:
        return list(range(num_clients))
    return _some(num_clients, clients_per_round, rng)


def trained_heads(heads: int, trained: int, rng: np.random.Generator) -> tuple[int, ...] | None:
    """A uniform choice of heads, as RAVAN's random rule (arXiv 2506.05568); None if it is all of them."""
    return None if trained >= heads else tuple(_some(heads, trained, rng))


def _some(of: int, wanted: int, rng: np.random.Generator) -> list[int]:
    return sorted(int(c) for c in rng.choice(of, wanted, replace=False))
