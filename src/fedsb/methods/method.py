"""What a federated method is: a value that says what starts, trains, travels and is averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import Factors


class DrawFactors(Protocol):
    """Start values of one (out, in) layer from a generator, without data."""

    def __call__(self, out: int, n_in: int, rank: int, *, generator: torch.Generator) -> Factors: ...


class Aggregation(NamedTuple):
    """A stream over the cohort's updates: `finish(add(add(start(n), v1, w1), v2, w2))`.

    `start(size)` makes the accumulator, `add` takes in one update with its weight, `finish` gives the
    vector to broadcast. Memory must not grow with the number of updates where the method allows it.
    """

    start: Callable[[int], object]
    add: Callable[[object, Float[Tensor, "size"], float], object]
    finish: Callable[[object], Float[Tensor, "size"]]


class Method(NamedTuple):
    """One federated method.

    Attributes:
        name: as in `method.name`.
        source: author, year, arXiv number.
        exact: whether the averaged adapter equals the weighted mean of the clients' weight updates.
        trains: which of the factors A, R, B train; the same go up and down.
        scale: (rank, alpha) -> s.
        draw: start values without data; None means the bases of `method.init`.
        aggregation: how updates become the next broadcast.
    """

    name: str
    source: str
    exact: bool
    trains: tuple[str, ...]
    scale: Callable[[int, float | None], float]
    draw: DrawFactors | None
    aggregation: Aggregation
