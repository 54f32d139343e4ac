"""Which clients take part in a round."""

from __future__ import annotations

import numpy as np


def cohort(num_clients: int, clients_per_round: int | None, rng: np.random.Generator) -> list[int]:
    """Client ids of one round, ascending: all, or a uniform sample without replacement."""
    if clients_per_round is None or clients_per_round >= num_clients:
        return list(range(num_clients))
    return sorted(int(c) for c in rng.choice(num_clients, clients_per_round, replace=False))
