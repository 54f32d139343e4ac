"""Privacy without a trusted server: each client adds a share of the noise to what it adds to the sum.

    unit: client     update - broadcast -> clipped -> whole numbers -> + discrete Gaussian -> masks -> sum
    unit: example    sum of clipped gradients      -> whole numbers -> + discrete Gaussian -> masks -> sum

The sum has the noise of its plan as soon as `fewest` clients in it added theirs (Kairouz et al. 2021, arXiv
2102.06387): the server, or whoever reads the sum, has what it would have of a server that adds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsb.errors import InputError
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.messages import TAIL
from fedsb.federation.secure.summands import ROUND_BITS, Summand
from fedsb.privacy.clipping import clip
from fedsb.privacy.discrete_noise import LEAST_STD, discrete_gaussian
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ClientPlan, ExamplePlan

FARTHEST = 12.0
"""Standard deviations of the sum's noise that there is room for; more happen with a chance of 4e-33."""


@dataclass(frozen=True)
class NoiseShares:
    """One round's.

    Attributes:
        plan: whose `fewest` clients make up its noise.
        cohort: clients that are asked. size: numbers of an update.
        most_rows: rows of the client with the most, where clients give sums over rows that were clipped one
            by one; None: each gives an update, which is clipped here.
    """

    plan: ClientPlan | ExamplePlan
    cohort: int
    size: int
    most_rows: int | None = None

    def __post_init__(self) -> None:
        if self.std < LEAST_STD:
            raise InputError(
                f"privacy: a noise multiplier of {self.plan.noise_multiplier:g} is too little for the steps "
                "in which updates are added up; raise it, or lower privacy.epsilon"
            )

    @property
    def fewest(self) -> int:
        """Clients whose shares make up the noise."""
        assert self.plan.fewest is not None
        return self.plan.fewest

    @cached_property
    def coding(self) -> FixedPoint:
        """Fine enough for updates within the clip norm, or sums of as many gradients as are in a batch, with
        room for all noise together."""
        noise = FARTHEST * self.plan.noise_multiplier * math.sqrt(self.cohort / self.fewest) / self.cohort
        units = 1 if self.most_rows is None else self._most_in_a_batch
        return FixedPoint(ROUND_BITS, self.plan.clip_norm * (units + noise), self.cohort)

    @property
    def _most_in_a_batch(self) -> float:
        """There is no room for more if all point one way; the chance of that is below 1e-12."""
        assert self.most_rows is not None
        mean = self.plan.sampling_probability * self.most_rows
        return min(self.most_rows, mean + 8 * math.sqrt(mean) + 8)

    @property
    def sensitivity(self) -> float:
        """Largest L2 change of one client's whole numbers. Its clipped update, and half a step in each number
        for rounding, against none; or of two sums of which each is rounded, a gradient, a step in each
        number, and what fp64 loses in adding up so many (twice, as their count may be a rounded one)."""
        moved, roundings = self.plan.clip_norm / self.coding.step, math.sqrt(self.size)
        if self.most_rows is None:
            return moved + roundings / 2
        return moved * (1 + (4 * self.most_rows**2 + self.size) * 2.0**-52) + roundings

    @property
    def std(self) -> float:
        """Of one client's share, in steps."""
        return self.plan.noise_multiplier * self.sensitivity / math.sqrt(self.fewest)

    def integers(self, summand: Summand, stream: Keystream) -> np.ndarray:
        """As `Summand.integers`, noised, of no loss: an update clipped and of a weight that is everybody's, a
        sum as it is beside its weight.

        Raises:
            UpdateRejected: this client has more rows than the one with the most.
        """
        if self.most_rows is None:
            whole = Summand(clip(summand.values, self.plan.clip_norm)[0]).integers(self.coding, 1)
        else:
            whole = summand.integers(self.coding, self.most_rows, weighted=False)
        whole[:-TAIL] += discrete_gaussian(self.size, self.std, stream)
        return whole
