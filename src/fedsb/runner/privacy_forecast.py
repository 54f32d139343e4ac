"""What a private run will add as noise, and whether anything will be left to learn, before it starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fedsb.config import RunConfig
from fedsb.config.privacy_checks import check_delta
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.plan import ClientPlan, ExamplePlan, ScorePlan
from fedsb.runner.client_privacy import client_plan
from fedsb.runner.example_privacy import beside_rounds, example_plans, score_plans
from fedsb.runner.secure_settings import cohort_size

DROWNS = 4.0
"""Signal over noise below which runs on SST-2 and SNLI learned little or nothing (docs/guides/privacy.md):
LoRA over three clients at epsilon 1 had 3 and stayed with the larger class, FFA-LoRA had 4.2 and did not."""


@dataclass(frozen=True)
class Forecast:
    """A run's noise; of the client with the fewest examples where each adds its own.

    Attributes:
        batch: examples or owners of a step, or clients of a round, on average.
        steps: noisy steps of one client over the run, or noisy rounds.
        parties: clients of a round whose noise averages out.
        num_trained: numbers that are noised.
    """

    unit: str
    noise_multiplier: float
    steps: int
    batch: float
    parties: int
    num_trained: int
    epsilon: float
    delta: float
    scores: ScorePlan | None = None
    """Of that client at its own test rows."""

    @property
    def signal_to_noise(self) -> float:
        """The length of all steps together, if each has the clip norm and all go one way, over the length of
        their noise: B sqrt(T K) / (z sqrt(d))."""
        if not self.noise_multiplier:
            return math.inf
        noise = self.noise_multiplier * math.sqrt(self.num_trained)
        return self.batch * math.sqrt(self.steps * self.parties) / noise

    def lines(self) -> Iterator[str]:
        """What to say of it, with a warning where the noise is larger than what can be learned."""
        of = "rounds of {:.4g} clients" if self.unit == "client" else f"steps of {{:.4g}} {self.unit}s"
        yield (
            f"noise multiplier {self.noise_multiplier:.3g} in {self.steps:,} {of.format(self.batch)} on "
            f"average: epsilon {self.epsilon:.3g} at delta {self.delta:.2g}, for each {self.unit}"
        )
        if self.scores is not None:
            alone = epsilon([self.scores.all], self.delta)
            yield (
                f"{self.scores.releases} scores at the clients are in it, noise multiplier "
                f"{self.scores.noise_multiplier:.3g}: epsilon {alone:.3g} alone"
            )
        if self.signal_to_noise < DROWNS:
            yield (
                f"warning: the noise on {self.num_trained:,} trained numbers will drown what is learned "
                f"(signal to noise at most {self.signal_to_noise:.2g}; below {DROWNS:g} our runs learned "
                f"little). {self._cures()} would help"
            )

    def _cures(self) -> str:
        if self.unit == "client":
            return "More clients in a round, more rounds, a smaller method.rank or a larger privacy.epsilon"
        return (
            "More rows, larger batches (training.accumulation), more epochs, a smaller method.rank, public "
            "rows to start from (method.init.public) or a larger privacy.epsilon"
        )


def forecast(
    config: RunConfig,
    sizes: Sequence[int],
    num_trained: int,
    tests: Sequence[int] = (),
    owners: Sequence[int] = (),
) -> Forecast:
    """The forecast of a config with privacy.

    Args:
        sizes: examples of each client.
        tests: those that each is scored on, where clients are scored.
        num_trained: numbers that one client trains, head included.
        owners: of each client, where these are the unit.

    Raises:
        InputError: delta is too large, or epsilon cannot be reached.
    """
    settings, federation = config.privacy, config.federation
    assert settings is not None
    delta = check_delta(config, owners or sizes)
    plan: ExamplePlan | ClientPlan
    batch: float
    scores = score_plans(config, dict(enumerate(tests)))
    if settings.unit == "client":
        plan, beside, scored = client_plan(config, settings, delta), [], None
        noise, steps, batch, parties = plan.update_noise_multiplier, plan.rounds, plan.expected_cohort, 1
    else:
        smallest = min(range(len(sizes)), key=lambda client: sizes[client])
        plans, starts = example_plans(config, settings, {smallest: sizes[smallest]}, delta, scores)
        plan = replace(plans[smallest], owners=owners[smallest] if owners else None)
        beside = beside_rounds(smallest, starts, scores)
        scored = scores.get(smallest)
        noise, steps = plan.sum_noise_multiplier, plan.rounds * plan.steps_per_round
        batch, parties = plan.expected_units, cohort_size(config)
        if plan.sharing is not None:  # one sum of all, with one noise
            batch = plan.sharing.rate * sum(owners or sizes) * parties / federation.clients
            parties = 1
    spent = epsilon([*beside, plan.whole], delta)
    return Forecast(settings.protects, noise, steps, batch, parties, num_trained, spent, delta, scored)
