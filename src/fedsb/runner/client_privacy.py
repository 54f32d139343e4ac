"""Privacy whose unit is a whole client: the server clips updates, noises their mean, and is charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsb.config import RunConfig
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.plan import ClientPlan
from fedsb.runner.banded_plan import banded_column
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.secure_settings import fewest_honest


def secret_cohort(private: PrivateRun, number: int) -> list[int] | None:
    """The Poisson cohort of a round, another one if it was charged before; None: the seeded one, which a run
    has whose unit is an example, or whose clients add the noise: against the server no cohort is secret."""
    if private.server_plan is None or private.server_plan.fewest is not None:
        return None
    repeat = private.guard.ledger.times(None, "round", number)
    return private.server_plan.cohort(private.samples.stream("cohort", number, repeat), number)


def server_release(private: PrivateRun, number: int, clip_norm: float | None) -> ClientRelease | None:
    """What clips (None: to the config's norm) and noises a round's mean, charged; None: the clients do."""
    plan = private.server_plan
    if plan is None:
        return None
    private.check_not_begun(None, number)
    private.guard.charge(None, "round", number, plan.of_round(number))
    if plan.fewest is not None:
        return None
    clip_norm = private.settings.clip_norm if clip_norm is None else clip_norm
    return ClientRelease(
        plan, clip_norm, private.noise, number, correlated=private.correlated(None, plan, number - 1)
    )


def cohort_facts(
    private: PrivateRun, plan: ClientPlan, metrics: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is left of the claim against a reader of the cohorts, which are secret: for the client that was in
    most, each of its rounds is a release without sampling. A round that was charged and not listed counts."""
    listed = Counter(client for line in metrics for client in _cohort_of(line))
    charged = len(private.guard.ledger.mechanisms(None, "round"))
    most = max(listed.values(), default=0) + charged - metrics[-1]["round"]
    seen = plan.whole._replace(sampling_probability=1.0, steps=most)
    return {
        "fewest_honest": plan.fewest,
        "cohort": plan.expected_cohort,
        "count_noise_std": plan.count_noise_std,
        "update_noise_multiplier": plan.update_noise_multiplier,
        "rounds_of_one_client": most,
        "epsilon_cohorts_known": epsilon([seen], private.guard.delta),
    }


def _cohort_of(line: Mapping[str, Any]) -> list[int]:
    """Everybody who was asked in this round of metrics.jsonl."""
    return [*line["clients"], *(rejected["client"] for rejected in line["rejected"])]


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
        fewest=fewest_honest(config),
    )
    if settings.mechanism == "banded":
        plan = replace(plan, column=banded_column(config, settings, plan, plan.rounds, delta))
    if settings.epsilon is None or settings.noise_multiplier:
        return plan
    return plan.calibrated(settings.epsilon, delta)
