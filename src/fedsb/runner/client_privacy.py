"""Privacy whose unit is a whole client: the server clips updates, noises their mean, and is charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsb.config import RunConfig
from fedsb.config.sections import PrivacyConfig
from fedsb.federation.training import Train, train
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.plan import ClientPlan
from fedsb.runner.private_run import PrivateRun


@dataclass(frozen=True, kw_only=True)
class ClientPrivacy(PrivateRun[ClientPlan]):
    """The server's one plan."""

    @property
    def plan(self) -> ClientPlan:
        return self.plans[None]

    @property
    def units(self) -> int:
        return self.plan.num_clients

    def trainer(self, client: int, number: int) -> Train:
        return _without_loss

    def cohort(self, number: int) -> list[int]:
        repeat = self.guard.ledger.times(None, "round", number)
        return self.plan.cohort(self.samples.stream("cohort", number, repeat))

    def server_release(self, number: int, clip_norm: float | None) -> ClientRelease:
        self.guard.charge(None, "round", number, self.plan.round)
        clip_norm = self.settings.clip_norm if clip_norm is None else clip_norm
        return ClientRelease(self.plan, clip_norm, self.noise, number)

    def cohort_facts(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For the client that was in most cohorts, each of its rounds is a release without sampling. A round
        that was charged and not listed counts."""
        listed = Counter(client for line in metrics for client in _cohort_of(line))
        charged = len(self.guard.ledger.mechanisms(None, "round"))
        most = max(listed.values(), default=0) + charged - metrics[-1]["round"]
        seen = self.plan.round._replace(sampling_probability=1.0, steps=most)
        return {
            "count_noise_std": self.plan.count_noise_std,
            "update_noise_multiplier": self.plan.update_noise_multiplier,
            "rounds_of_one_client": most,
            "epsilon_cohorts_known": epsilon([seen], self.guard.delta),
        }


def _cohort_of(line: Mapping[str, Any]) -> list[int]:
    """Everybody who was asked in this round of metrics.jsonl."""
    return [*line["clients"], *(rejected["client"] for rejected in line["rejected"])]


def _without_loss(*args: Any, **more: Any) -> None:
    train(*args, **more)


def client_plan(config: RunConfig, settings: PrivacyConfig, delta: float) -> ClientPlan:
    """The server's plan, its noise calibrated.

    Raises:
        InputError: epsilon cannot be reached.
    """
    federation = config.federation
    plan = ClientPlan(
        num_clients=federation.clients,
        expected_cohort=federation.clients_per_round or federation.clients,
        rounds=federation.rounds,
        clip_norm=settings.clip_norm,
        quantile=settings.quantile,
        noise_multiplier=settings.noise_multiplier or 0.0,
    )
    if settings.epsilon is None or settings.noise_multiplier:
        return plan
    return plan.calibrated(settings.epsilon, delta)
