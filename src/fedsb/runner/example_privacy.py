"""Privacy whose unit is one example: each client clips, noises and is charged; the mean is a plain one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from fedsb.config import RunConfig
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.federation.cohort import cohort
from fedsb.federation.start.settings import PrivateStart
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.plan import ExamplePlan, ScorePlan, StartPlan
from fedsb.runner.arguments import local_training
from fedsb.runner.banded_plan import banded_column
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.secure_settings import sharing_of


def private_start(private: PrivateRun, *, elsewhere: bool = False) -> PrivateStart | None:
    """How clients protect their part of private bases; None where the start looks at no private rows.

    Args:
        elsewhere: clients keep their own accounts; here each one's sum counts once, however often asked.
    """
    if not private.starts:
        return None
    ledger = private.guard.ledger

    def charge(client: int) -> None:
        if not (elsewhere and ledger.mechanisms(client, "start")):
            private.guard.charge(client, "start", 0, private.starts[client].release)

    repeats = {client: ledger.times(client, "start", 0) for client in private.starts}
    stream = private.samples.stream
    return PrivateStart(private.starts, private.noise, charge, repeats, stream, private.max_length)


def example_plans(
    config: RunConfig,
    settings: PrivacyConfig,
    sizes: Mapping[int, int],
    delta: float,
    scores: Mapping[int, ScorePlan],
) -> tuple[dict[int, ExamplePlan], dict[int, StartPlan]]:
    """Each client's plan of its rounds, and of its part in private bases; their noise calibrated, so that the
    scores have room in the budget, too.

    Raises:
        InputError: epsilon cannot be reached.
    """
    plans, starts, times = {}, {}, _times_chosen(config)
    for client, size in sizes.items():
        if config.method.init.private:
            starts[client] = _start_plan(config, settings, size, delta)
        plan = _plan(config, settings, size, max(times.values()) if config.sums_gradients else times[client])
        if settings.mechanism == "banded":
            beside, steps = beside_rounds(client, starts, scores), plan.steps_per_round * plan.rounds
            plan = replace(plan, column=banded_column(config, settings, plan, steps, delta, beside))
        if settings.epsilon is not None and not settings.noise_multiplier:
            plan = plan.calibrated(settings.epsilon, delta, before=beside_rounds(client, starts, scores))
        plans[client] = plan
    return plans, starts


def beside_rounds(
    client: int, starts: Mapping[int, StartPlan], scores: Mapping[int, ScorePlan]
) -> list[Mechanism]:
    """What this client releases in the run beside its rounds."""
    start = [starts[client].release] if client in starts else []
    return start + ([scores[client].all] if client in scores else [])


def score_plans(config: RunConfig, tests: Mapping[int, int]) -> dict[int, ScorePlan]:
    """The plan of each client that has rows to be scored on. tests: how many, by client."""
    noise = config.privacy.score_noise_multiplier if config.privacy else None
    if noise is None or not config.scores_at_clients:
        return {}
    plan = ScorePlan(noise_multiplier=noise, releases=config.times_scored)
    return {client: plan for client, count in tests.items() if count}


def _start_plan(config: RunConfig, settings: PrivacyConfig, size: int, delta: float) -> StartPlan:
    """The same number of samples for each, as far as it has them: a client knows nobody else's size."""
    init = config.method.init
    each = max(1, round(init.samples / config.federation.clients))
    plan = StartPlan(num_examples=size, expected_samples=min(size, each))
    if settings.epsilon is None:
        return replace(plan, noise_multiplier=settings.noise_multiplier or 0.0)
    return plan.calibrated(init.budget_share * settings.epsilon, delta)


def _plan(config: RunConfig, settings: PrivacyConfig, size: int, rounds: int) -> ExamplePlan:
    """One client's plan before calibration: as many steps a round as without privacy; where clients share the
    noise, one, and nothing else of it is of this client alone."""
    training, sharing = local_training(config), sharing_of(config)
    batch = training.batch_size * training.accumulation
    return ExamplePlan(
        num_examples=size,
        expected_batch_size=min(size, batch) if sharing is None else max(1, round(sharing.rate * size)),
        steps_per_round=training.steps_per_round(size),
        rounds=rounds,
        clip_norm=settings.clip_norm,
        quantile=settings.quantile,
        noise_multiplier=settings.noise_multiplier or 0.0,
        sharing=sharing,
    )


def _times_chosen(config: RunConfig) -> dict[int, int]:
    """By client, the rounds in which the seeded cohorts include it; at least 1."""
    federation = config.federation
    if federation.clients_per_round is None:
        return dict.fromkeys(range(federation.clients), federation.rounds)
    chosen = Counter(
        client
        for number in range(1, federation.rounds + 1)
        for client in cohort(federation.clients, federation.clients_per_round, config.seed, number)
    )
    return {client: max(1, chosen[client]) for client in range(federation.clients)}
