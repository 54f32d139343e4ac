"""Which clients share an expert, found from their cores: average linkage over the cosine of their updates.

Over orthonormal bases B and A the product B (R_i - R) A keeps lengths and angles of the cores' changes, so
these cosines are exactly those of the clients' dense updates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fedsb.errors import RunFailed


def clusters(updates: Mapping[int, Float[np.ndarray, "n"]], count: int) -> dict[int, int]:
    """Client -> its cluster, from 0, numbered in the order of the first client of each.

    Args:
        updates: each client's change of the cores, as one vector.

    Raises:
        RunFailed: there are fewer different updates than clusters.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    clients = sorted(updates)
    if len(clients) < count:
        raise RunFailed(
            f"method.experts.count: {len(clients)} clients answered, too few for {count} clusters"
        )
    distances = _cosine_distances(np.stack([updates[client] for client in clients]))
    tree = linkage(squareform(distances, checks=False), method="average")
    labels = fcluster(tree, count, criterion="maxclust").tolist()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    if len(numbers) < count:
        raise RunFailed(
            f"method.experts.count: the clients' updates fall into {len(numbers)} clusters, not {count}; "
            "lower it, or raise method.experts.warmup_rounds"
        )
    return {client: numbers[label] for client, label in zip(clients, labels, strict=True)}


def _cosine_distances(vectors: Float[np.ndarray, "clients n"]) -> Float[np.ndarray, "clients clients"]:
    """1 - cosine; a vector of zeros is at right angles to all."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    units = exact / np.where(lengths > 0, lengths, 1.0)
    distances = np.clip(1.0 - units @ units.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    return distances
