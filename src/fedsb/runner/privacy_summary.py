"""What a private run says of its privacy: the section `privacy` of summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fedsb.privacy.accounting import Mechanism, epsilon, merged
from fedsb.privacy.groups import SIZES, group_epsilon
from fedsb.privacy.keystream import GENERATOR
from fedsb.privacy.odds import best_true_positive_rates
from fedsb.privacy.plan import ClientPlan, ExamplePlan
from fedsb.privacy.statement import statement
from fedsb.runner.client_privacy import cohort_facts
from fedsb.runner.private_run import PrivateRun


def privacy_summary(
    run: PrivateRun,
    metrics: Sequence[Mapping[str, Any]],
    *,
    experts: bool = False,
    owner_like: str | None = None,
) -> dict[str, Any]:
    """The section's keys and values.

    Args:
        metrics: the lines of metrics.jsonl.
        experts: whether examples have experts, of which each client's counts are known.
        owner_like: a column that looks as if it said whose a row is, and is not named as `privacy.owner`.
    """
    private, rounds_done, settings = run.settings.insecure_seed is None, metrics[-1]["round"], run.settings
    per_client = {
        "all" if who is None else str(who): _account_facts(run, who, plan)
        for who, plan in run.accounts.items()
    }
    worst = max(per_client.values(), key=lambda facts: facts["epsilon"])
    facts = {
        "unit": settings.protects,
        "owner": settings.owner,
        "private": private,
        "epsilon": worst["epsilon"] if private else None,
        "delta": run.guard.delta,
        "accountant": f"{_accountant(run)} (dp-accounting {version('dp-accounting')})",
        "epsilon_rdp": worst["epsilon_rdp"] if private else None,
        "epsilon_start": worst["epsilon_start"] if private else None,
        "epsilon_rounds": worst["epsilon_rounds"] if private else None,
        "epsilon_scores": worst["epsilon_scores"] if private else None,
        "score_noise_multiplier": settings.score_noise_multiplier,
        "noise_multiplier": max(facts["noise_multiplier"] for facts in per_client.values()),
        "noise_source": f"{GENERATOR}, keys from the operating system" if private else "a fixed seed",
        "clip_norm": settings.clip_norm,
        "quantile": settings.quantile,
        "bands": max(plan.bands for plan in run.accounts.values()),
        "target_epsilon": settings.epsilon,
        "relation": f"one {settings.protects} present or blanked",
        "sampling": "none" if run.server_plan is not None and shared_noise(run) else "Poisson",
        "units": _units(run),
        "rounds": rounds_done,
        "stopped_early": rounds_done < run.rounds,
        "per_client": per_client,
        "counts_by_expert_public": experts,
    }
    if run.server_plan is not None:
        facts |= cohort_facts(run, run.server_plan, metrics)
    facts |= _sharing_facts(run)
    if private:
        facts["best_true_positive_rates"] = _best_guesses(run)
    if owner_like is not None and private:
        facts |= {"owner_like": owner_like, "groups": _groups(run)}
    return facts | {"statement": statement(facts)}


def shared_noise(run: PrivateRun) -> bool:
    """Whether clients add the noise of a round together."""
    return run.shared_plan is not None


def _sharing_facts(run: PrivateRun) -> dict[str, Any]:
    """Who shares the noise of sums over rows, and how likely a row is in one."""
    plan = run.shared_plan
    if not isinstance(plan, ExamplePlan) or plan.sharing is None:
        return {}
    sharing = plan.sharing
    return {"fewest_honest": sharing.fewest, "cohort": sharing.cohort, "sampling_rate": sharing.rate}


def _accountant(run: PrivateRun) -> str:
    return "Renyi DP" if shared_noise(run) else "PLD"


def _units(run: PrivateRun) -> int | None:
    """How many units there are, of the smallest client or of all, which delta is measured by; None where
    clients alone know."""
    if run.server_plan is not None:
        return run.server_plan.num_clients
    if run.settings.owner is not None:
        known = [plan.owners for plan in run.plans.values() if plan.owners is not None]
        return min(known) if known else None
    return min(plan.num_examples for plan in run.plans.values())


def _spent(run: PrivateRun) -> set[tuple[Mechanism, ...]]:
    """The different lists of what clients released."""
    return {merged(run.guard.ledger.mechanisms(who)) for who in run.accounts}


def _best_guesses(run: PrivateRun) -> dict[str, float]:
    """By false-positive rate, the largest true-positive rate over clients."""
    of_each = [best_true_positive_rates(spent) for spent in _spent(run)]
    return {rate: max(best[rate] for best in of_each) for rate in of_each[0]}


def _groups(run: PrivateRun) -> dict[str, float]:
    """By number of examples of one person at a client, the largest epsilon over clients."""
    spent, delta = _spent(run), run.guard.delta
    return {str(size): max(group_epsilon(of, delta, size) for of in spent) for size in SIZES}


def _account_facts(run: PrivateRun, who: int | None, plan: ExamplePlan | ClientPlan) -> dict[str, Any]:
    ledger, delta = run.guard.ledger, run.guard.delta
    start = None if who is None else run.starts.get(who)
    spent = ledger.mechanisms(who)
    return {
        "epsilon": epsilon(spent, delta),
        "epsilon_rdp": epsilon(spent, delta, accountant="rdp"),
        "epsilon_start": run.guard.epsilon(who, "start"),
        "epsilon_rounds": run.guard.epsilon(who, "round"),
        "epsilon_scores": run.guard.epsilon(who, "score"),
        "scores": len(ledger.mechanisms(who, "score")),
        "noise_multiplier": plan.noise_multiplier,
        "start_noise_multiplier": start.noise_multiplier if start else None,
        "sampling_probability": plan.sampling_probability,
        "steps": sum(mechanism.steps for mechanism in ledger.mechanisms(who, "round")),
    }
