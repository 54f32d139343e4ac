"""Units of nobody in a client's private steps, to see what the steps give away of them.

Each canary's gradient lies along one trained number of its own, beyond the clip norm, so that nothing but
noise and what real units have there hides it. Half of them, by fair coins, are in; these join each step by a
coin of the step's own probability and are clipped, summed and noised with the rest (Steinke et al. 2023,
arXiv 2305.08846, in the space of the trained numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsb.common.seeding import numpy_generator
from fedsb.federation.local_model import Example
from fedsb.privacy.audit import log_odds, log_odds_among
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ExamplePlan
from fedsb.privacy.sampling import poisson_sample

NUMBERS_AT_A_TIME = 2**24
GradientsOf = Callable[[Sequence[Example]], dict[str, Tensor]]
"""Examples -> each parameter's gradients of them, examples first."""
BEYOND = 3.0
"""Length of a canary's gradient in clip norms: clipping is seen too."""


@dataclass
class Canaries:
    """The canaries of one client over a whole run.

    Attributes:
        included: by canary, whether it is in.
        coins: of their part in each step.
        place_seed: draws the numbers that they lie along.
        seen: of each step, the noised sum at every canary's number, in clip norms.
    """

    included: np.ndarray
    coins: Keystream
    place_seed: int
    seen: list[np.ndarray] = field(default_factory=list)

    def joining(
        self, parameters: Mapping[str, nn.Parameter], probability: float, clip_norm: float, _: GradientsOf
    ) -> list[Callable[[], dict[str, Tensor]]]:
        """What makes the gradients of those that join a step, some at a time, units first."""
        most = max(1, NUMBERS_AT_A_TIME // sum(p.numel() for p in parameters.values()))
        drawn = [i for i in poisson_sample(len(self.included), probability, self.coins) if self.included[i]]
        groups = [drawn[start : start + most] for start in range(0, len(drawn), most)]
        return [partial(self._gradients, parameters, group, BEYOND * clip_norm) for group in groups]

    def see(self, parameters: Mapping[str, nn.Parameter], scale: float) -> None:
        """Look at a step's gradient, which was multiplied by 1 / scale for clip norms."""
        gradient = torch.cat([_flat(p.grad) for p in parameters.values()])
        self.seen.append(gradient[self._places(parameters)].double().cpu().numpy() * scale)

    def odds(self, plan: ExamplePlan) -> np.ndarray:
        """Each one's log odds of having been in, at the plan's noise."""
        return log_odds(self.seen, plan.sampling_probability, plan.sum_noise_multiplier)

    def _places(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        return _places(sum(p.numel() for p in parameters.values()), len(self.included), self.place_seed)

    def _gradients(
        self, parameters: Mapping[str, nn.Parameter], group: list[int], length: float
    ) -> dict[str, Tensor]:
        sizes = [p.numel() for p in parameters.values()]
        device = next(iter(parameters.values())).device
        rows = torch.zeros(len(group), sum(sizes), device=device)
        rows[torch.arange(len(group)), self._places(parameters)[group]] = length
        parts = rows.split(sizes, dim=1)
        return {
            name: part.reshape(len(group), *p.shape)
            for (name, p), part in zip(parameters.items(), parts, strict=True)
        }


@dataclass
class RowCanaries:
    """Rows of the client as canaries: those whose coin said so are in its data, and what is looked at is the
    noised sum along each one's own gradient.

    Attributes:
        rows: all candidates, in or not. included: by row, whether it is in.
        at_a_time: rows of one pass.
        seen: of each step, the noised sum along every row's clipped gradient, these among each other, and the
            standard deviation of what is beside all of them, in clip norms.
    """

    rows: Sequence[Example]
    included: np.ndarray
    at_a_time: int
    seen: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)
    _directions: Tensor = field(default_factory=lambda: torch.zeros(0))

    def joining(
        self, _: Mapping[str, nn.Parameter], probability: float, clip_norm: float, gradients_of: GradientsOf
    ) -> list[Callable[[], dict[str, Tensor]]]:
        """None: they are in the batches. Takes their gradients before the step."""
        starts = range(0, len(self.rows), self.at_a_time)
        parts = [gradients_of(self.rows[start : start + self.at_a_time]) for start in starts]
        found = torch.cat([torch.cat([g.flatten(1) for g in part.values()], 1) for part in parts])
        self._directions = (found / found.norm(dim=1, keepdim=True).clamp_min(clip_norm)).double()
        return []

    def see(self, parameters: Mapping[str, nn.Parameter], scale: float) -> None:
        """As `Canaries.see`."""
        gradient = torch.cat([_flat(p.grad) for p in parameters.values()]).double()
        along, gram = self._directions @ gradient * scale, self._directions @ self._directions.T
        among = gram.cpu().numpy()
        sum_along, beside = along.cpu().numpy(), float((gradient * scale).square().sum())
        beside -= float(sum_along @ np.linalg.pinv(among, hermitian=True) @ sum_along)
        free = max(1, gradient.numel() - len(self.rows))
        self.seen.append((sum_along, among, math.sqrt(max(beside, 1e-12) / free)))

    def odds(self, plan: ExamplePlan) -> np.ndarray:
        """Each one's log odds of having been in. The noise is what is left of a step beside all rows."""
        parts = [log_odds_among([(a, g)], plan.sampling_probability, left) for a, g, left in self.seen]
        return np.sum(parts, axis=0)


@lru_cache(maxsize=4)
def _places(size: int, count: int, seed: int) -> Tensor:
    """A number of its own for each canary, of so many."""
    return torch.from_numpy(numpy_generator(seed, "places of canaries").permutation(size)[:count])


def _flat(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.flatten()
