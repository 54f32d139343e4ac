"""The non-dominated points of cost and quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """`cost`: less is better. `quality`: more is better."""

    cost: float
    quality: float


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other one beats, in order; equal points stay or go together.

    One beats another if it is at least as good in both and better in one. By rising cost and falling quality,
    a point stays if its quality is above every cheaper one's, and the best at its cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].quality))
    kept: list[int] = []
    for place in order:
        last = points[kept[-1]] if kept else None
        if last is None or points[place].quality > last.quality or points[place] == last:
            kept.append(place)
    return sorted(kept)
