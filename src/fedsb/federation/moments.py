"""Adam's moments that outlast a round: kept by each client, or averaged with what trains.

An optimizer that starts anew each round forgets how large each number's gradients are. Of moments that are
averaged the mean is exact, as it is for what trains: m and v are linear in a client's gradients and their
squares. The bias correction goes on as if this client had taken its steps in every round before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedsb.methods.averaging.beside import MOMENTS

if TYPE_CHECKING:
    from fedsb.federation.exchange import Exchange

Lasting = Literal["fresh", "kept", "averaged"]
ADAM = ("exp_avg", "exp_avg_sq")
"""What AdamW calls them."""
STEPS = "steps of moments"


@dataclass
class Moments:
    """One client's in one round.

    Attributes:
        given: by kind and name of the number.
        steps: how many steps of this client's they are of; None: all of `rounds` rounds.
        wanted: names of the numbers.
        found: as the round left them.
    """

    given: Mapping[str, Tensor]
    wanted: tuple[str, ...]
    rounds: int = 0
    steps: int | None = None
    found: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(
        exchange: Exchange, round_number: int, shared: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> Moments | None:
        """What an optimizer starts from; None where it starts anew.

        Args:
            shared: what the broadcast holds.
            kept: what the client keeps.
        """
        if exchange.moments == "fresh":
            return None
        wanted = exchange.trained(round_number)
        if exchange.moments == "averaged":
            return Moments(shared, wanted, round_number - 1)
        return Moments(kept, wanted, steps=int(kept[STEPS]) if STEPS in kept else 0)

    def put(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], steps: int
    ) -> None:
        """Start the optimizer from them; `steps`: of this client in a round."""
        self.steps = self.rounds * steps if self.steps is None else self.steps
        for name in self.wanted if self.steps else ():
            parameter = parameters[name]
            state = {
                theirs: self.given[f"{kind}{name}"].to(parameter.device, copy=True)
                for kind, theirs in zip(MOMENTS, ADAM, strict=True)
            }
            optimizer.state[parameter] = {"step": torch.tensor(float(self.steps)), **state}
        self.steps += steps

    def take(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        """Note them as they are now."""
        for name in self.wanted:
            state = optimizer.state[parameters[name]]
            for kind, theirs in zip(MOMENTS, ADAM, strict=True):
                self.found[f"{kind}{name}"] = state[theirs].detach().cpu().clone()

    def to_keep(self) -> dict[str, Tensor]:
        """What a client keeps of them."""
        return self.found | {STEPS: torch.tensor(self.steps)}
