"""From a config to a run's privacy: plans with their noise calibrated, and the ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedsb.config import RunConfig
from fedsb.config.privacy_checks import check_delta
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.privacy.account import Account, Guard
from fedsb.privacy.data_ledger import DataLedger, place_beside
from fedsb.privacy.ledger import LEDGER, PrivacyLedger
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan, StartPlan
from fedsb.runner.client_privacy import client_plan
from fedsb.runner.example_privacy import beside_rounds, example_plans, score_plans
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.private_state import SampleSecret


def prepare_privacy(
    config: RunConfig,
    sizes: Mapping[int, int],
    folder: Path,
    account: Account | None = None,
    rows: int | None = None,
    tests: Mapping[int, int] | None = None,
    owners: Mapping[int, int] | None = None,
) -> PrivateRun | None:
    """Plans with their noise calibrated, and the ledgers as far as they were written; None without privacy.

    Args:
        sizes: how many examples each of the clients has whose privacy is accounted for here: of all in a
            simulated run, of itself on a node.
        account: a node's, of its rows over all runs.
        rows: how many a node samples from, where its size is a rounded count.
        tests: how many rows each of them is scored on, where clients are scored.
        owners: how many owners each of them has, where these are the unit and are known here.

    Raises:
        InputError: delta is too large, epsilon cannot be reached, a ledger is not what it was.
        BudgetSpent: this run has not begun, and the account has no room for all of it.
    """
    settings = config.privacy
    if settings is None:
        return None
    delta = check_delta(config, (owners or sizes).values())
    account = account or _account(settings, folder)
    guard = Guard(PrivacyLedger(folder / LEDGER), delta, settings.epsilon, account)
    plans, starts, server_plan = dict[int, ExamplePlan](), dict[int, StartPlan](), None
    scores = score_plans(config, tests or {})
    if settings.unit == "client":
        server_plan = client_plan(config, settings, delta)
    else:
        plans, starts = example_plans(config, settings, sizes, delta, scores)
    for client, plan in plans.items():
        guard.check_plan([*beside_rounds(client, starts, scores), *[plan.round] * plan.rounds])
    return PrivateRun(
        settings=settings,
        guard=guard,
        noise=NoiseSource(settings.insecure_seed),
        rounds=config.federation.rounds,
        samples=SampleSecret(folder, settings.insecure_seed),
        plans={c: replace(plan, rows=rows, owners=(owners or {}).get(c)) for c, plan in plans.items()},
        starts={client: replace(plan, rows=rows) for client, plan in starts.items()},
        scores=scores,
        server_plan=server_plan,
        max_length=config.training.tokens,
    )


def _account(settings: PrivacyConfig, folder: Path) -> Account | None:
    """The account of a simulated data set, if one is asked for; it is checked before the run begins."""
    if settings.ledger is None:
        return None
    ledger = DataLedger(place_beside(Path(settings.ledger)))
    secret = settings.insecure_seed is None
    account = Account(ledger, str(folder.resolve()), settings.account_unit, secret_noise=secret)
    account.check()
    return account


def check_budget(
    config: RunConfig, sizes: Sequence[int], tests: Sequence[int], owners: Sequence[int] = ()
) -> None:
    """Refuse early what `prepare_privacy` would refuse once the run begins.

    Noise is sought for the smallest client alone: one calibration takes seconds.

    Args:
        sizes: examples that each client trains on. tests: those it is scored on. owners: of the former, where
            these are the unit.

    Raises:
        InputError: delta is too large, or epsilon cannot be reached.
    """
    settings = config.privacy
    if settings is None:
        return
    delta = check_delta(config, owners or sizes)
    if settings.unit == "client":
        client_plan(config, settings, delta)
    else:
        smallest = min(range(len(sizes)), key=lambda client: sizes[client])
        scores = score_plans(config, dict(enumerate(tests)))
        example_plans(config, settings, {smallest: sizes[smallest]}, delta, scores)
