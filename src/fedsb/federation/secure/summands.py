"""What a client adds to a secure sum: its answer as integers, its loss and its weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.secure.fixed_point import LARGEST_LOSS, FixedPoint
from fedsb.federation.secure.messages import TAIL
from fedsb.federation.server import Weighting, sent_before

ONCE = 64, 65_536.0
"""Bits and range of the start's sums, whose size nobody knows beforehand."""
ROUND_BITS = 32
"""As many as an update's numbers have anyway."""


@dataclass(frozen=True)
class Summand:
    """One client's part: numbers, of which `weight / heaviest` is added."""

    values: Tensor
    weight: int = 1
    loss: float = 0.0

    def integers(self, coding: FixedPoint, heaviest: int, *, weighted: bool = True) -> np.ndarray:
        """All that is added: the numbers and the TAIL.

        weighted: False adds the numbers as they are, whatever the weight.

        Raises:
            UpdateRejected: this client is heavier than the heaviest.
        """
        if not 0 < self.weight <= heaviest:
            raise UpdateRejected(f"secure aggregation: a weight of {self.weight}, {heaviest} is the largest")
        factor = self.weight / heaviest if weighted else 1.0
        whole = np.empty(self.values.numel() + TAIL, np.int64)
        torch.from_numpy(whole[:-TAIL]).copy_(coding.encoded(self.values, factor))
        of_loss = FixedPoint(coding.bits, LARGEST_LOSS, coding.addends)
        whole[-TAIL] = of_loss.encoded(torch.tensor([self.loss], dtype=torch.float64), factor)[0]
        whole[-2], whole[-1] = self.weight & 0xFFFF, self.weight >> 16
        return whole


def of_sum(answer: bytes) -> Summand:
    """A sum of clipped gradients, which is added as it is; its weight is how many rows it is drawn from."""
    header, values = wire.unpack(answer, torch.float64)
    return Summand(values, header.num_examples)


def of_update(broadcast: bytes, answer: bytes, exchange: Exchange, weighting: Weighting) -> Summand:
    """A round's update, less what was broadcast of its numbers."""
    header, vector = wire.unpack(answer)
    _, sent = wire.unpack(broadcast)
    change = vector - sent_before(exchange, header.round, sent[: exchange.down(exchange.rank).size])
    weight = header.num_examples if weighting == "examples" else 1
    return Summand(change, weight, header.train_loss or 0.0)
