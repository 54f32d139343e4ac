"""The start under attack: what `federation.robust` does to warmed-up heads and to contributions to the bases.

Heads are averaged as a round's updates are: by the same average, each within the same bound of the head that
was sent. One beyond it is always scaled back: so early there is nobody to spare, and a head moves further in
its warm-up than in a round.

Of contributions, which are summed, the directions matter. Layer by layer each is scaled back to the median
size of all that are not zero (of an even number the smaller middle one): no single one makes up the sum. What
a few clients can still do is turn the bases as far as their share of the clients goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fedsb.errors import RunFailed
from fedsb.federation.exchange import Layout
from fedsb.methods.averaging.mean import weighted_mean
from fedsb.methods.averaging.robust import Average, NormBound, robust
from fedsb.methods.method import AggregationInputs, Upload


@dataclass(frozen=True)
class Robust:
    """The config's `federation.robust` as the start needs it."""

    average: Average = "mean"
    trim: float = 0.1
    bound: NormBound | None = None


class Head(NamedTuple):
    """A warmed-up head as one vector, and the examples behind it."""

    client: int
    vector: Float[Tensor, "n"]
    examples: int


def average_heads(
    heads: Iterable[Head], before: Float[Tensor, "n"], layout: Layout, checks: Robust | None
) -> Float[Tensor, "n"]:
    """The head that goes to everybody next.

    Args:
        before: the head that was sent.
        checks: None: the mean, weighted by examples.

    Raises:
        RunFailed: there is no head.
    """
    checks = checks or Robust()
    aggregation, count = robust(weighted_mean(), checks.average, checks.trim), 0
    accumulator = aggregation.start(AggregationInputs(layout.view(before), dict(layout.entries), {}, 1.0))
    for client, vector, examples in heads:
        if checks.bound is not None:
            vector, _ = checks.bound.within(vector, before)
        upload = Upload(layout.view(vector), vector, float(examples), client=client)
        accumulator, count = aggregation.add(accumulator, upload), count + 1
    if not count:
        raise RunFailed("start: no client's head could be used; the clients' own lines say why")
    return layout.flatten(dict(aggregation.finish(accumulator).tensors))


class Sizes(NamedTuple):
    """How large a contribution is in one layer, and how it is made smaller."""

    norms: tuple[float, ...]
    """One norm for each part that can be larger or smaller by itself."""
    scaled: tuple[str, ...]
    """Names of the tensors to be multiplied."""


Measured = Mapping[str, Sizes]
Counted = tuple[dict[str, Tensor], int]
"""A contribution, and the examples behind it."""


def evened(messages: Iterable[tuple[Counted, Measured]]) -> Iterator[Counted]:
    """The contributions, none larger than the median one in any layer. All are in memory together."""
    held = list(messages)
    medians = {
        layer: _medians([sizes[layer].norms for _, sizes in held]) for layer in (held[0][1] if held else ())
    }
    for (tensors, examples), sizes in held:
        scaled = dict(tensors)
        for layer, (norms, names) in sizes.items():
            factor = _factor(norms, medians[layer])
            if factor < 1:
                scaled |= {name: (factor * tensors[name].double()).to(tensors[name].dtype) for name in names}
        yield scaled, examples


def _medians(norms: list[tuple[float, ...]]) -> list[float]:
    """The median of each size by itself, over those that are not zero; 0 where all are."""
    columns = ([norm for norm in column if norm > 0] for column in zip(*norms, strict=True))
    return [sorted(column)[(len(column) - 1) // 2] if column else 0.0 for column in columns]


def _factor(norms: tuple[float, ...], medians: list[float]) -> float:
    return min((m / n for n, m in zip(norms, medians, strict=True) if n > m), default=1.0)
