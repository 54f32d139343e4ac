"""Who holds which examples: iid, Dirichlet over labels, by a column's values, or label shards.

Every function returns one ascending list of example indices per client. Every example goes to exactly
one client, no client is empty, and the result depends on the generator alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from fedsb.errors import InputError

Parts = list[list[int]]
MAX_DRAWS = 1000
MAX_DRAWN = 200_000
"""Values dealt over all draws, but three draws always: some seconds."""


def iid(num_examples: int, clients: int, rng: np.random.Generator) -> Parts:
    """A random split into parts whose sizes differ by at most one."""
    _enough(num_examples, clients)
    return _ascending(np.array_split(rng.permutation(num_examples), clients))


def dirichlet(
    labels: Sequence[Hashable], clients: int, *, alpha: float, min_size: int = 1, rng: np.random.Generator
) -> Parts:
    """Each label's examples are dealt in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv
    1909.06335). Small alpha: strong label skew. Drawn again until each client has `min_size` examples.

    Raises:
        InputError: too few examples, or none of so many draws gave each client `min_size`.
    """
    _enough(len(labels), clients * min_size)
    groups = [np.asarray(g) for _, g in sorted(_groups(labels).items(), key=lambda item: str(item[0]))]
    draws = max(3, min(MAX_DRAWS, MAX_DRAWN // len(groups)))
    for _ in range(draws):
        parts = _deal_by_proportion(groups, clients, alpha, rng)
        if min(map(len, parts)) >= min_size:
            return _ascending(parts)
    raise InputError(
        f"federation.partition: none of {draws} Dirichlet draws with alpha {alpha} over {len(groups)} values "
        f"gave each of {clients} clients at least {min_size} of {len(labels)} examples. Raise alpha, lower "
        "min_size or federation.clients."
    )


def _deal_by_proportion(
    groups: Sequence[np.ndarray], clients: int, alpha: float, rng: np.random.Generator
) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for group in groups:
        share = rng.dirichlet(np.full(clients, alpha))
        cuts = np.round(np.cumsum(share)[:-1] * len(group)).astype(int)
        for part, chunk in zip(parts, np.split(rng.permutation(group), cuts), strict=True):
            part.extend(chunk.tolist())
    return parts


def by_column(values: Sequence[Hashable], clients: int, rng: np.random.Generator) -> Parts:
    """All examples with one value go to one client, the largest group left to the client with the fewest
    examples so far. With more clients than values, each value has one or several clients, which share its
    examples at random, evenly: the next client is the value's that has the most examples for each.

    Raises:
        InputError: fewer examples than clients.
    """
    _enough(len(values), clients)
    groups = sorted(_groups(values).items(), key=lambda item: (-len(item[1]), str(item[0])))
    if clients > len(groups):
        return _shared([group for _, group in groups], clients, rng)
    parts: Parts = [[] for _ in range(clients)]
    for _, group in groups:
        min(parts, key=len).extend(group)
    return _ascending(parts)


def by_name(values: Sequence[Hashable], names: Sequence[str]) -> Parts | None:
    """The examples of the value that a client is called as, for each client; None where no client is called
    as any value. Upper and lower case, and space around a name, make no other name.

    Raises:
        InputError: some clients are called as values and others are not, or a value is no client's name.
    """
    of_value: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        of_value[_called(value)].append(index)
    wanted = [_called(name) for name in names]
    if not set(wanted) & set(of_value):
        return None
    if missing := [name for name, like in zip(names, wanted, strict=True) if like not in of_value]:
        raise InputError(
            f"federation.sites: {', '.join(missing[:5])}: no row of theirs in the column that deals the "
            "rows, where others have some; remove them, or correct the names"
        )
    if left := sum(len(rows) for like, rows in of_value.items() if like not in wanted):
        raise InputError(
            f"federation.sites: {left} rows are of no site listed, by the column that deals the rows; list "
            "all of its values, or remove those rows"
        )
    return [of_value[like] for like in wanted]


def _called(value: Hashable) -> str:
    return str(value).strip().casefold()


def _shared(groups: Sequence[list[int]], clients: int, rng: np.random.Generator) -> Parts:
    """Each group over clients of its own, the first group's first."""
    shares = [1] * len(groups)
    for _ in range(clients - len(groups)):
        shares[max(range(len(groups)), key=lambda i: len(groups[i]) / shares[i])] += 1
    return [
        part
        for group, share in zip(groups, shares, strict=True)
        for part in _ascending(np.array_split(rng.permutation(group), share))
    ]


def shards(
    labels: Sequence[Hashable], clients: int, *, shards_per_client: int, rng: np.random.Generator
) -> Parts:
    """Examples sorted by label are cut into clients * shards_per_client equal shards, dealt at random
    (McMahan et al. 2017, arXiv 1602.05629): each client sees few labels."""
    _enough(len(labels), clients * shards_per_client)
    order = rng.permutation(len(labels))
    by_label = np.asarray(sorted(order.tolist(), key=lambda i: str(labels[i])))
    pieces = np.array_split(by_label, clients * shards_per_client)
    dealt = rng.permutation(len(pieces)).reshape(clients, shards_per_client)
    return _ascending([np.concatenate([pieces[i] for i in row]) for row in dealt])


def _groups(values: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        groups[value].append(index)
    return dict(groups)


def _ascending(parts: Iterable[Iterable[int]]) -> Parts:
    return [sorted(int(i) for i in part) for part in parts]


def _enough(num_examples: int, needed: int) -> None:
    if num_examples < needed:
        raise InputError(
            f"federation.clients: {num_examples} training examples are too few for each client to get its "
            f"minimum ({needed} needed in all). Lower federation.clients or use more data."
        )
