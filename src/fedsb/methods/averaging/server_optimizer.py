"""A step of the server's own along the averaged update, in place of all of it.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2; with optimizer sgd it is FedAvgM (Hsu et al. 2019,
arXiv 1909.06335). With x the broadcast and d = mean(x_i) - x:

    sgd     m <- momentum m + d,                    x <- x + rate m
    adam    m <- momentum m + (1 - momentum) d,     x <- x + rate m / (sqrt(v) + tau),
            v <- b v + (1 - b) d^2
    yogi    as adam, but v <- v - (1 - b) d^2 sign(v - d^2)

with b = 0.99, v = tau^2 before the first round and no correction of the first steps, as there. m and v are
kept number by number, of what goes up: a factor that does not train in a round waits. For methods that need
nothing but the mean: what the step gives goes through the method's own aggregation as if one client had
sent it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsb.methods.averaging.mean import WeightedSum
from fedsb.methods.method import Aggregation, Averaged, aggregate_one

SECOND_MOMENTUM = 0.99


@dataclass(frozen=True)
class ServerOptimizer:
    """The rule. Its defaults give the mean itself.

    Attributes:
        adaptivity: tau of adam and yogi.
    """

    optimizer: Literal["sgd", "adam", "yogi"] = "sgd"
    learning_rate: float = 1.0
    momentum: float = 0.0
    adaptivity: float = 1e-3

    @property
    def neutral(self) -> bool:
        """Whether a step is the whole of the averaged update."""
        return self.optimizer == "sgd" and self.learning_rate == 1.0 and self.momentum == 0.0

    def step(self, change: Tensor, m: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(what x moves by, the next m, the next v); None: before the first round."""
        m = torch.zeros_like(change) if m is None else m.double()
        v = torch.full_like(change, self.adaptivity**2) if v is None else v.double()
        if self.optimizer == "sgd":
            m = self.momentum * m + change
            return self.learning_rate * m, m, v
        m, squared = self.momentum * m + (1 - self.momentum) * change, change.square()
        new = (1 - SECOND_MOMENTUM) * squared
        v = SECOND_MOMENTUM * v + new if self.optimizer == "adam" else v - new * (v - squared).sign()
        return self.learning_rate * m / (v.sqrt() + self.adaptivity), m, v


def stepped(aggregation: Aggregation, rule: ServerOptimizer | None) -> Aggregation:
    """The method's aggregation, fed one vector: where the server's step leads from the broadcast."""

    def finish(total: WeightedSum) -> Averaged:
        frame = total.frame
        memory: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        for name, mean in total.mean().items():
            before = frame.current[name].double()
            m, v = (frame.memory.get(f"{part} {name}") for part in ("first moment", "second moment"))
            assert rule is not None
            by, m, v = rule.step(mean.double() - before, m, v)
            moved[name] = (before + by).float()
            memory |= {f"first moment {name}": m.float(), f"second moment {name}": v.float()}
        vector = torch.cat([moved[name].reshape(-1) for name in frame.answer])
        averaged = aggregate_one(aggregation, vector, frame)
        return averaged._replace(memory={**averaged.memory, **memory})

    if rule is None or rule.neutral:
        return aggregation
    return Aggregation(WeightedSum, WeightedSum.add, finish)
