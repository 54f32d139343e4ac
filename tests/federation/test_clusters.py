"""Groups of clients by their cores: those that a loop over all pairs finds, and what cannot be grouped."""

import numpy as np
import pytest

from fedsb.errors import RunFailed
from fedsb.federation.clusters import clusters


def average_linkage(vectors, count):
    """The two groups whose members are nearest on average become one, until so many are left."""
    groups = [[i] for i in range(len(vectors))]

    def distance(i, j):
        a, b = vectors[i], vectors[j]
        return 1 - a @ b / np.sqrt((a @ a) * (b @ b))

    while len(groups) > count:
        pairs = [(x, y) for x in range(len(groups)) for y in range(x)]
        means = {p: np.mean([distance(i, j) for i in groups[p[0]] for j in groups[p[1]]]) for p in pairs}
        x, y = min(means, key=means.__getitem__)
        groups[y] += groups.pop(x)
    return {frozenset(group) for group in groups}


def grouped(found):
    return {frozenset(c for c in found if found[c] == g) for g in set(found.values())}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_groups_are_those_of_a_loop(rng, count):
    vectors = rng.normal(size=(9, 6))
    found = clusters(dict(enumerate(vectors)), count)
    assert grouped(found) == average_linkage(vectors, count)


def test_domains_are_found_whatever_the_lengths(rng):
    """Three directions, with noise, and lengths over four powers of ten."""
    domains = [0, 2, 1, 1, 0, 2, 2, 0]
    directions = rng.normal(size=(3, 200))
    vectors = {
        c: 10.0 ** rng.uniform(-2, 2) * (directions[d] + 0.5 * rng.normal(size=200))
        for c, d in enumerate(domains)
    }
    found = clusters(vectors, 3)
    assert grouped(found) == grouped(dict(enumerate(domains)))
    assert list(dict.fromkeys(found[c] for c in sorted(found))) == [0, 1, 2]


def test_what_cannot_be_grouped_is_said(rng):
    with pytest.raises(RunFailed, match="too few for 3 clusters"):
        clusters({0: rng.normal(size=4), 1: rng.normal(size=4)}, 3)
    same = np.ones(4)
    with pytest.raises(RunFailed, match="fall into 1 clusters, not 2"):
        clusters({0: same, 1: 2 * same, 2: 3 * same}, 2)
