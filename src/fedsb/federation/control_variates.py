"""Control variates that draw clients' steps to the federation's direction.

Source: Karimireddy et al. 2020, arXiv 1910.06378 (SCAFFOLD), option II. Client i keeps c_i, the server c,
both zero at first. In a round whose K local steps have the rates l_1 ... l_K, from the broadcast x to y_i:

    each step     y <- y - l_k (gradient - c_i + c)
    client        c_i' = c_i - c + (x - y_i) / (l_1 + ... + l_K),      sends y_i and c_i' - c_i
    server        c <- c + share mean(c_i' - c_i),      x <- mean(y_i)

with the share of all clients' weight that those have who answered: |S| / N where all weigh the same. For
plain SGD, whose steps add up to what c_i estimates, and methods that send what they train. Here is the
client's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsb.federation.exchange import Exchange
from fedsb.methods.averaging.beside import CONTROL


@dataclass(frozen=True)
class Controls:
    """The server's and the client's own, by the names of what they are of; empty where there are none."""

    shared: Mapping[str, Tensor]
    own: Mapping[str, Tensor]

    @staticmethod
    def of(
        exchange: Exchange, round_number: int, shared: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> Controls:
        """As a round begins.

        Args:
            shared: what the broadcast holds.
            kept: what the client keeps.
        """
        entries = exchange.beside(round_number).entries
        names = [name.removeprefix(CONTROL) for name, _ in entries if name.startswith(CONTROL)]
        theirs = {name: shared[f"{CONTROL}{name}"] for name in names}
        own = {name: kept.get(f"{CONTROL}{name}", torch.zeros_like(c)) for name, c in theirs.items()}
        return Controls(theirs, own)

    @property
    def names(self) -> tuple[str, ...]:
        """Of what they are."""
        return tuple(self.shared)

    def shift(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """c - c_i, where the parameters are."""
        return {name: (self.shared[name] - self.own[name]).to(parameters[name].device) for name in self.names}

    def after(
        self, before: Mapping[str, Tensor], parameters: Mapping[str, Tensor], rates: float
    ) -> dict[str, Tensor]:
        """The client's next ones, as it keeps them.

        Args:
            before, parameters: what was trained, before and after.
            rates: the sum of the steps' learning rates.
        """
        found = {}
        for name in self.names:
            gradient = (before[name] - parameters[name].detach()).cpu() / rates
            found[f"{CONTROL}{name}"] = self.own[name] - self.shared[name] + gradient
        return found

    def changes(self, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What goes up of them."""
        return {name: value - self.own[name.removeprefix(CONTROL)] for name, value in after.items()}
