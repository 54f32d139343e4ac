"""A client's control variates and Adam's moments in one round, where a run has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedsb.federation.control_variates import Controls
from fedsb.federation.exchange import Exchange
from fedsb.federation.moments import Moments


@dataclass
class Beside:
    """What goes beside trained numbers.

    Attributes:
        averaged: whether the moments travel; else the client keeps them.
        after: the client's next control variates.
    """

    controls: Controls
    moments: Moments | None
    averaged: bool
    after: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(
        exchange: Exchange, round_number: int, shared: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> Beside:
        """As a round begins, of what the broadcast holds and what the client keeps."""
        moments = Moments.of(exchange, round_number, shared, kept)
        controls = Controls.of(exchange, round_number, shared, kept)
        return Beside(controls, moments, exchange.moments == "averaged")

    def for_training(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """More arguments of `training.train`."""
        shift = {"shift": self.controls.shift(parameters)} if self.controls.names else {}
        return {**shift, **({"moments": self.moments} if self.moments else {})}

    def sent(
        self, before: Mapping[str, Tensor], parameters: Mapping[str, Tensor], rates: float
    ) -> dict[str, Tensor]:
        """What goes up of it after training, by steps whose rates add up to `rates`."""
        self.after = self.controls.after(before, parameters, rates)
        moments = self.moments.found if self.moments and self.averaged else {}
        return self.controls.changes(self.after) | moments

    def to_keep(self) -> dict[str, Tensor]:
        """What the client keeps of it."""
        return self.after | (self.moments.to_keep() if self.moments and not self.averaged else {})
