"""Who trains which experts, and what the server keeps of a mixture beside its vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Counts = Mapping[int, int]
"""Expert -> how many training examples of it."""


@dataclass(frozen=True)
class ExpertsPlan:
    """What all parties of a run know of its mixture.

    Attributes:
        count: E, how many experts there are.
        compares: whether clients keep the cores as they were after the hard rounds, to stay near them.
        balances: whether the shares in which experts are used travel with the gate.
        pooled: width of the base's states, where one gate over them chooses for all layers; 0: layers have
            gates of their own.
    """

    count: int
    compares: bool = False
    balances: bool = False
    pooled: int = 0


@dataclass(frozen=True)
class ExpertState:
    """What the server keeps of a mixture beside its vector.

    Attributes:
        counts: client -> its experts and its examples of each; empty until clusters are found.
        opened: whether the hard rounds are over and the gate is made.
        holding: clients that were sent all cores as they were when the gate was made.
        cores: these cores, by layer (E, r, r), where clients need them; else empty.
        usage: (E,) shares of the experts, which sum to 1.
        gate: (E, d + 1) over the base's pooled states, with route: request.
    """

    counts: Mapping[int, Counts]
    usage: Float[Tensor, "e"]
    opened: bool = False
    holding: frozenset[int] = frozenset()
    cores: Mapping[str, Float[Tensor, "e r r"]] = field(default_factory=dict)
    gate: Float[Tensor, "e d1"] | None = None

    def held_by(self, client: int) -> tuple[int, ...]:
        """The experts that a client trains, ascending; the first alone before clusters are found."""
        return tuple(sorted(self.counts[client])) if self.counts else (0,)


def counted(experts: Iterable[int]) -> dict[int, int]:
    """Expert -> how often it occurs, in ascending order."""
    return dict(sorted(Counter(experts).items()))


def shares(counts: Mapping[int, Counts], experts: int) -> Float[Tensor, "e"]:
    """Each expert's share of all examples; equal shares where nothing is known."""
    totals = torch.zeros(experts)
    for held in counts.values():
        for expert, number in held.items():
            totals[expert] += number
    return totals / totals.sum() if totals.sum() else torch.full((experts,), 1 / experts)
