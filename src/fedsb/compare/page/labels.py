"""Names beside points without overlap, as far as that is possible."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DISTANCES = (0.0, 8.0, 18.0, 30.0, 44.0, 60.0, 80.0)
DIRECTIONS = 16
SWEEPS = 4


class Box(NamedTuple):
    left: float
    low: float
    right: float
    high: float


class Spot(NamedTuple):
    """A point, the size of its name, and what is drawn for it."""

    x: float
    y: float
    width: float
    height: float
    taken: tuple[Box, ...]


def place(spots: Sequence[Spot], room: Box, lines: Sequence[Box] = ()) -> list[tuple[float, float]]:
    """Offset of each name's middle from its point. Names avoid each other, all that is drawn, and the rim.

    Greedy, then each name again with all others in place, a few times over.
    """
    drawn = [*lines, *(box for spot in spots for box in spot.taken)]
    chosen: dict[int, tuple[float, float]] = {}
    for _ in range(SWEEPS):
        for at, spot in enumerate(spots):
            others = [_box(spots[i], shift) for i, shift in chosen.items() if i != at]
            chosen[at] = min(
                _offsets(spot), key=lambda shift: _cost(_box(spot, shift), shift, others, drawn, room)
            )
    return [chosen[at] for at in range(len(spots))]


def _offsets(spot: Spot) -> Iterable[tuple[float, float]]:
    """Right, left, above and below first, then all around and further off."""
    reach_x, reach_y = spot.width / 2 + 7, spot.height / 2 + 5
    for far in DISTANCES:
        for n in range(DIRECTIONS):
            angle = 2 * math.pi * n / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            yield (across * (reach_x + far), up * (reach_y + far))
            if 0 < abs(up) < 0.8:  # flush beside the point, not only on the ellipse
                yield (math.copysign(reach_x + far, across), up * (reach_y + far))


def _box(spot: Spot, shift: tuple[float, float]) -> Box:
    x, y = spot.x + shift[0], spot.y + shift[1]
    return Box(x - spot.width / 2, y - spot.height / 2, x + spot.width / 2, y + spot.height / 2)


def _cost(
    box: Box, shift: tuple[float, float], others: Sequence[Box], drawn: Sequence[Box], room: Box
) -> float:
    """Overlaps weigh most, then how far away and how slanted the name is."""
    overlap = sum(_shared(box, other) for other in others) + 0.8 * sum(_shared(box, other) for other in drawn)
    area = (box.right - box.left) * (box.high - box.low)
    outside = area - _shared(box, room)
    near = math.hypot(max(0.0, abs(shift[0]) - (box.right - box.left) / 2), abs(shift[1]))
    return 10 * overlap + 10 * outside + near + (0.0 if shift[0] > 0 and abs(shift[1]) < 1 else 1.0)


def _shared(a: Box, b: Box) -> float:
    """Area of the overlap."""
    across = min(a.right, b.right) - max(a.left, b.left)
    up = min(a.high, b.high) - max(a.low, b.low)
    return across * up if across > 0 and up > 0 else 0.0
