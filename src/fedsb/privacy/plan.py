"""One frozen value for what is sampled, clipped, noised and accounted: the parts cannot disagree.

Three units of protection: an example of one client, or all examples of one owner there (`ExamplePlan`, one
plan per client), and a whole client (`ClientPlan`, one for the server). Neighbours differ in one unit,
which is present or blanked: its slot stays, so that numbers of examples and of clients are public, and with
them every probability and divisor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.calibration import calibrate
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.sampling import cyclic_batches, poisson_sample

FARTHEST = 1000.0
"""Factor by which a clip norm that follows the gradients may leave the one it began with."""


def count_noise_std(expected: float, noise_multiplier: float) -> float:
    """Standard deviation of the noise on the number of units within the clip norm: a twentieth of the units
    expected, as the rule's authors advise, but never less than the release's noise multiplier."""
    return max(expected / 20, noise_multiplier)


def multiplier_beside_count(noise_multiplier: float, count_std: float) -> float:
    """Noise multiplier of the sum, where a count is released with it as one mechanism of `noise_multiplier`.

    Both are one Gaussian mechanism of multiplier z: z^-2 = sum^-2 + (2 count)^-2, since one unit moves the
    centred count by 1/2 (Andrew et al. 2021, arXiv 1905.03871, theorem 1).
    """
    if noise_multiplier == 0:
        return 0.0
    return float((noise_multiplier**-2 - (2 * count_std) ** -2) ** -0.5)


def followed(clip_norm: float, quantile: float, rate: float, noised_share_within: float) -> float:
    """The clip norm after a release in which about this share of the units was within it."""
    return clip_norm * math.exp(-rate * (noised_share_within - quantile))


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How clients share the noise of one sum a round over all their batches.

    Attributes:
        rate: of every unit in every round, whoever has it.
        fewest: clients of a round that each add a share of the noise, at least.
        cohort: clients of a round.
    """

    rate: float
    fewest: int
    cohort: int


@dataclass(frozen=True, kw_only=True)
class ExamplePlan:
    """DP-SGD of one client (Abadi et al. 2016, arXiv 1607.00133) over its own examples.

    With a quantile, the clip norm follows that quantile of the gradients' norms from step to step of a round
    (Andrew et al. 2021, arXiv 1905.03871), and begins each round at `clip_norm`: clients keep no state.

    Attributes:
        num_examples: of this client; taken as public.
        rows: how many there really are, where `num_examples` is a rounded count; None: as many.
        owners: how many owners they have, where all of an owner's examples are one unit: drawn by one coin,
        and
            clipped as their sum. None: each example is a unit.
        expected_batch_size: examples of a Poisson batch.
        steps_per_round, rounds: noisy steps of one round, and rounds in which the client is to take part.
        clip_norm: largest L2 norm of one unit's gradient, all trained numbers together.
        noise_multiplier: standard deviation of the noise over the sum's sensitivity.
        column: of the banded matrix that the noise is correlated by (see `banded`); empty: by none.
        sharing: None: the client adds all the noise of its steps. Else a round is one step, of which the
            client gives its sum, and `noise_multiplier` is of the sum over clients.
    """

    num_examples: int
    expected_batch_size: int
    steps_per_round: int
    rounds: int
    clip_norm: float
    noise_multiplier: float = 0.0
    rows: int | None = None
    owners: int | None = None
    column: tuple[float, ...] = ()
    quantile: float | None = None
    clip_norm_rate: float = 0.5
    sharing: Sharing | None = None

    @property
    def fewest(self) -> int | None:
        """As of `ClientPlan`."""
        return None if self.sharing is None else self.sharing.fewest

    @property
    def bands(self) -> int:
        """Of the steps' noise; a unit may be drawn in every so many-th step alone."""
        return max(1, len(self.column))

    @property
    def sampling_probability(self) -> float:
        """Of a unit in a step in which it may be drawn."""
        if self.sharing is not None:
            return self.sharing.rate
        return min(1.0, self.bands * self.expected_batch_size / self.num_examples)

    @property
    def units(self) -> int:
        """What batches are drawn from: examples, or owners."""
        if self.owners is not None:
            return self.owners
        return self.num_examples if self.rows is None else self.rows

    @property
    def expected_units(self) -> float:
        """Units of a batch on average; also what sums are divided by, but for those of several clients."""
        if self.sharing is not None:
            return self.units * self.sharing.rate
        if self.owners is None:
            return self.expected_batch_size
        return self.owners * self.sampling_probability / self.bands

    @property
    def sensitivity(self) -> float:
        """The largest L2 change of the sum of clipped gradients if one unit is blanked, at `clip_norm`."""
        return self.clip_norm

    @property
    def count_noise_std(self) -> float:
        """As `count_noise_std`, of a step's batch; 0 without a quantile."""
        if self.quantile is None:
            return 0.0
        return count_noise_std(self.expected_units, self.noise_multiplier)

    @property
    def sum_noise_multiplier(self) -> float:
        """Noise multiplier of a step's sum: more than the step's, if the count takes its share."""
        if self.quantile is None:
            return self.noise_multiplier
        return multiplier_beside_count(self.noise_multiplier, self.count_noise_std)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, at `clip_norm`."""
        return self.sum_noise_multiplier * self.sensitivity if self.noise_multiplier else 0.0

    def next_clip_norm(self, clip_norm: float, noised_count: float) -> float:
        """The clip norm of the next step; `noised_count`: units within this one, less half of all."""
        if self.quantile is None:
            return clip_norm
        share = noised_count / self.expected_units + 0.5
        moved = followed(clip_norm, self.quantile, self.clip_norm_rate, share)
        return min(max(moved, self.clip_norm / FARTHEST), self.clip_norm * FARTHEST)

    def of_round(self, number: int) -> Mechanism:
        """What this round adds to all before it. With bands, the steps in which any one unit may be drawn."""
        first, end = (number - 1) * self.steps_per_round, number * self.steps_per_round
        return self._steps(-(-end // self.bands) - -(-first // self.bands))

    @property
    def whole(self) -> Mechanism:
        """What all rounds release together."""
        return self._steps(-(-self.steps_per_round * self.rounds // self.bands))

    def _steps(self, count: int) -> Mechanism:
        discrete = self.sharing is not None
        return Mechanism(self.noise_multiplier, self.sampling_probability, count, discrete)

    def batches(self, coins: Keystream, number: int = 1) -> Iterator[list[int]]:
        """The batches of one round, of numbers of units."""
        steps = self.steps_per_round
        first, chance = (number - 1) * steps, self.sampling_probability
        return cyclic_batches(self.units, chance, self.bands, first, steps, coins)

    def calibrated(self, epsilon: float, delta: float, *, before: Sequence[Mechanism] = ()) -> ExamplePlan:
        """With the least noise that keeps all rounds, and `before`, within epsilon at delta.

        Raises:
            InputError: `before` alone spends it.
        """

        def at(noise: float) -> list[Mechanism]:
            return [*before, replace(self, noise_multiplier=noise).whole]

        return replace(self, noise_multiplier=calibrate(epsilon, delta, at))


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """Noisy averages over clients (McMahan et al. 2018, arXiv 1710.06963); the server adds the noise once.

    With a quantile, the clip norm follows that quantile of the updates' norms (Andrew et al. 2021, arXiv
    1905.03871): the share of clients within it is released too, and takes its part of the same noise.

    Attributes:
        num_clients: all of them; taken as public.
        expected_cohort: clients in a round on average; also what sums are divided by.
        clip_norm: largest L2 norm of one client's update, head included.
        noise_multiplier: of a round's whole release.
        fewest: clients of a round that each add a share of the noise, at least, where the server adds none;
            it draws the cohort, so sampling hides nothing from it. None: the server adds the noise.
        column: as of `ExamplePlan`, over rounds.
    """

    num_clients: int
    expected_cohort: int
    rounds: int
    clip_norm: float
    noise_multiplier: float = 0.0
    quantile: float | None = None
    clip_norm_rate: float = 0.2
    column: tuple[float, ...] = ()
    fewest: int | None = None

    @property
    def bands(self) -> int:
        """Of the rounds' noise; a client may be drawn in every so many-th round alone."""
        return max(1, len(self.column))

    @property
    def sampling_probability(self) -> float:
        """Of a client in a round in which it may be drawn."""
        if self.fewest is not None:
            return 1.0
        return min(1.0, self.bands * self.expected_cohort / self.num_clients)

    def of_round(self, number: int) -> Mechanism:
        """What this round adds to all before it. With bands, whether any one client may be drawn once
        more."""
        again = int((number - 1) % self.bands == 0)
        return Mechanism(self.noise_multiplier, self.sampling_probability, again, self.fewest is not None)

    @property
    def whole(self) -> Mechanism:
        """What all rounds release together."""
        steps = -(-self.rounds // self.bands)
        return Mechanism(self.noise_multiplier, self.sampling_probability, steps, self.fewest is not None)

    @property
    def count_noise_std(self) -> float:
        """As `count_noise_std`, of a round's cohort; 0 without a quantile."""
        return 0.0 if self.quantile is None else count_noise_std(self.expected_cohort, self.noise_multiplier)

    @property
    def update_noise_multiplier(self) -> float:
        """Noise multiplier of the sum of updates: more than the round's, if the count takes its share."""
        if self.quantile is None:
            return self.noise_multiplier
        return multiplier_beside_count(self.noise_multiplier, self.count_noise_std)

    def cohort(self, coins: Keystream, number: int = 1) -> list[int]:
        """Clients of one round; may be none."""
        chance, first = self.sampling_probability, number - 1
        return next(cyclic_batches(self.num_clients, chance, self.bands, first, 1, coins))

    def next_clip_norm(self, clip_norm: float, noised_share_within: float) -> float:
        """The clip norm after a round in which about this share of the cohort was within it."""
        if self.quantile is None:
            return clip_norm
        return followed(clip_norm, self.quantile, self.clip_norm_rate, noised_share_within)

    def calibrated(self, epsilon: float, delta: float) -> ClientPlan:
        """With the least noise that keeps all rounds within epsilon at delta."""

        def at(noise: float) -> list[Mechanism]:
            return [replace(self, noise_multiplier=noise).whole]

        return replace(self, noise_multiplier=calibrate(epsilon, delta, at))


@dataclass(frozen=True, kw_only=True)
class ScorePlan:
    """Noised counts over rows that a client is scored on, each time all of them.

    They are other rows than those it trains on. What any one row pays is the larger of the two costs;
    accounting adds them up, which is simpler and never too little.

    Attributes:
        noise_multiplier: standard deviation of the noise over the counts' sensitivity.
        releases: of the whole run.
    """

    noise_multiplier: float
    releases: int

    @property
    def release(self) -> Mechanism:
        """What one score releases."""
        return Mechanism(self.noise_multiplier, 1.0, 1)

    @property
    def all(self) -> Mechanism:
        """What all scores of the run release."""
        return self.release._replace(steps=self.releases)


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """One noisy sum of clipped per-example gradients over a Poisson sample, for private bases.

    Every layer's gradient of an example is scaled to the norm 1 / sqrt(num_layers), so that all layers
    together have the norm 1: directions are all that is needed. `num_examples`, `rows` as in `ExamplePlan`.
    """

    num_examples: int
    expected_samples: int
    noise_multiplier: float = 0.0
    rows: int | None = None

    @property
    def sampling_probability(self) -> float:
        return min(1.0, self.expected_samples / self.num_examples)

    @property
    def sensitivity(self) -> float:
        """The largest L2 change of all layers' sums together if one example is blanked."""
        return 1.0

    @property
    def noise_std(self) -> float:
        return self.noise_multiplier * self.sensitivity

    @property
    def release(self) -> Mechanism:
        return Mechanism(self.noise_multiplier, self.sampling_probability, 1)

    def sample(self, coins: Keystream) -> list[int]:
        rows = self.num_examples if self.rows is None else self.rows
        return poisson_sample(rows, self.sampling_probability, coins)

    def calibrated(self, epsilon: float, delta: float) -> StartPlan:
        """With the least noise that keeps the start alone within epsilon at delta."""

        def at(noise: float) -> list[Mechanism]:
            return [replace(self, noise_multiplier=noise).release]

        share = "privacy.epsilon x method.init.budget_share"
        noise = calibrate(epsilon, delta, at, setting=share, cure="raise either")
        return replace(self, noise_multiplier=noise)
