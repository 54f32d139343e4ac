"""When the core over the present bases has stopped moving: the server knows from what it averaged.

    change of a round   |R after it - R before it| / sum of a client's learning rates in it
    saturated           the last change < share * the largest one over these bases

A schedule that falls makes steps shorter by itself, so changes count per unit of learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsb.federation.exchange import Exchange


@dataclass(frozen=True)
class Saturation:
    """The criterion.

    Attributes:
        share: of the largest change over the same bases.
        least_rounds: played over the same bases before.
    """

    share: float
    least_rounds: int

    def reached(self, changes: Sequence[float]) -> bool:
        """Whether these bases are to be replaced, after the changes of all rounds over them.

        >>> [Saturation(0.5, 2).reached([4.0, 6.0, 3.5, 2.9][:rounds]) for rounds in range(5)]
        [False, False, False, False, True]
        """
        return len(changes) >= self.least_rounds and changes[-1] < self.share * max(changes)


def change_per_rate(exchange: Exchange, before: Tensor, after: Tensor, rates: float) -> float:
    """How far all layers' cores went from one shared vector to the next, over the sum of learning rates."""
    layout = exchange.down(exchange.rank)
    names = [f"{layer}.R" for layer in exchange.layers]
    first, last = layout.view(before), layout.view(after)
    moved = torch.cat([(last[name].double() - first[name].double()).reshape(-1) for name in names])
    return float(torch.linalg.vector_norm(moved)) / rates
