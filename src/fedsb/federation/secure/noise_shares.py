"""Client-level privacy without a trusted server: each client clips its update and adds a share of the noise.

    update - broadcast -> clipped -> whole numbers -> + discrete Gaussian -> masks -> sum

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
from fedsb.privacy.plan import ClientPlan

FARTHEST = 12.0
"""Standard deviations of the sum's noise that there is room for; more happen with a chance of 4e-33."""


@dataclass(frozen=True)
class NoiseShares:
    """One round's.

    Attributes:
        plan: whose `fewest` clients make up its noise.
        cohort: clients that are asked. size: numbers of an update.
    """

    plan: ClientPlan
    cohort: int
    size: int

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
        """Fine enough for updates within the clip norm, with room for all noise together."""
        noise = FARTHEST * self.plan.noise_multiplier * math.sqrt(self.cohort / self.fewest) / self.cohort
        return FixedPoint(ROUND_BITS, self.plan.clip_norm * (1 + noise), self.cohort)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of one client's whole numbers: of its clipped update, and half a step in each
        number for rounding."""
        return self.plan.clip_norm / self.coding.step + math.sqrt(self.size) / 2

    @property
    def std(self) -> float:
        """Of one client's share, in steps."""
        return self.plan.noise_multiplier * self.sensitivity / math.sqrt(self.fewest)

    def integers(self, summand: Summand, stream: Keystream) -> np.ndarray:
        """As `Summand.integers`, clipped and noised; of no loss, and of a weight that is everybody's."""
        clipped, _ = clip(summand.values, self.plan.clip_norm)
        whole = Summand(clipped).integers(self.coding, 1)
        whole[:-TAIL] += discrete_gaussian(self.size, self.std, stream)
        return whole
