"""An audit: one client's part of a private run once more with canaries in it, and what it gives away of them.

Everything is the run's own: rows, start, rounds, steps, sampling, clipping, noise. Where whole clients are
protected there is no training: updates of nobody go through the server's clipping, noise and rounds. What is
proven is a lower bound: below the stated epsilon all is as it should be, above it the privacy is broken.

The result is made of further private releases about the rows, which are charged to `privacy.ledger` as
another run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsb.common.files import read_json
from fedsb.common.seeding import derive
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.federation.canaries import BEYOND, Canaries, RowCanaries
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.audit import epsilon_at_least, log_odds
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.clipping import ClippedSum
from fedsb.privacy.odds import best_true_positive_rates, in_words
from fedsb.privacy.plan import ExamplePlan
from fedsb.privacy.sampling import poisson_sample
from fedsb.privacy.statement import rounded_up
from fedsb.report.progress import Progress, Silent
from fedsb.runner.checkpoint import RunState
from fedsb.runner.clients import part_of
from fedsb.runner.example_privacy import beside_rounds
from fedsb.runner.loop import session_of
from fedsb.runner.prepare_model import exchange_of
from fedsb.runner.prepared import Prepared, prepare
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.round_zero import begin
from fedsb.runner.rounds import play_round

AUDIT = "audit.json"
"""Its name in a run folder."""
MOST_CANARIES = 10_000
MOST_OVER_DELTA = 0.1
"""Canaries times delta: with more, what delta allows outweighs what they prove."""
CONFIDENCE = 0.95
PLACES = {
    "gradients": "gradients of nobody in one client's steps",
    "rows": "rows of one client",
    "updates": "updates of nobody in the server's rounds",
}


class Look(NamedTuple):
    """What was seen of canaries: of which client, how many releases, each canary's log odds, which were
    in."""

    kind: str
    client: int | None
    releases: int
    odds: np.ndarray
    included: np.ndarray


def audit(
    config: RunConfig,
    *,
    stated: float | None = None,
    canaries: int | None = None,
    rows: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `fedsb audit` prints.

    Args:
        stated: the epsilon that the run states; None: that of its plan.
        canaries: how many, at most as many as numbers are trained; None: ten thousand, or a tenth of one over
            delta if that is less.
        rows: the client's own rows are the canaries, for `unit: example`: what an attacker without a hand in
            the training could do. They prove less.

    Raises:
        InputError: the config has no privacy, or as `prepare`.
    """
    if config.privacy is None:
        raise InputError("privacy: this run has none, so there is nothing to audit; set privacy.epsilon")
    with tempfile.TemporaryDirectory(prefix="fedsb-audit-") as folder:
        run = Path(folder) / "run"
        run.mkdir()
        prepared = prepare(_without_scores(config), run, progress or Silent())
        assert prepared.privacy is not None
        if config.privacy.mechanism == "banded":
            raise InputError(
                "privacy.mechanism: an audit takes steps for independent; it is not for banded noise"
            )
        if prepared.privacy.shared_plan is not None:
            raise InputError(
                "privacy.honest: an audit adds a server's noise or one client's, not what clients share; it "
                "is not for this run"
            )
        look = _way(prepared.privacy, rows=rows)
        most = min(MOST_CANARIES, max(100, round(MOST_OVER_DELTA / prepared.privacy.guard.delta)))
        return _facts(prepared.privacy, look(prepared, canaries or most), stated)


def _way(private: PrivateRun, *, rows: bool) -> Callable[[Prepared, int], Look]:
    if rows and private.settings.protects != "example":
        raise InputError(
            f"--inputs: rows are no canaries where the unit is one {private.settings.protects}; leave it out"
        )
    if private.server_plan is not None:
        return _of_updates
    return _of_rows if rows else _of_steps


def _without_scores(config: RunConfig) -> RunConfig:
    """The same training, and nothing scored but what is charged to the same budget."""
    every = config.evaluation.every if config.scores_at_clients else None
    alone = config.evaluation.model_copy(update={"every": every, "baselines": []})
    return config.model_copy(update={"evaluation": alone, "tracking": []})


def _coins(private: PrivateRun, count: int) -> np.ndarray:
    """Which canaries are in, by fair coins."""
    bits = private.samples.stream("canaries in").read(count)
    return (bits >> np.uint64(63)).astype(bool)


def _smallest(private: PrivateRun) -> int:
    """The client with the fewest rows."""
    return min(private.plans, key=lambda client: private.plans[client].num_examples)


def _of_steps(prepared: Prepared, count: int) -> Look:
    """Gradients of nobody in the steps of the client with the fewest rows."""
    private = prepared.privacy
    assert private is not None
    client = _smallest(private)
    rounds = range(1, private.plans[client].rounds + 1)
    saved = begin(prepared)
    exchange = exchange_of(prepared.config, prepared.base, prepared.data.experts, saved.factors)
    parts = (part_of(prepared.config, client, (0,), number) for number in rounds)
    trained = min(exchange.up(number, part).size for number, part in zip(rounds, parts, strict=True))
    coins, seed = private.samples.stream("canaries"), derive(prepared.config.seed, "places")
    held = Canaries(_coins(private, min(count, trained)), coins, seed)
    _train(prepared, saved, client, held)
    return _seen("gradients", client, held, private.plans[client])


def _seen(kind: str, client: int, held: Canaries | RowCanaries, plan: ExamplePlan) -> Look:
    odds = held.odds(plan)
    return Look(kind, client, len(held.seen), odds, held.included)


def _of_rows(prepared: Prepared, count: int) -> Look:
    """Rows of the client with the fewest: its own, each left out by a fair coin; its slot stays."""
    private, data = prepared.privacy, prepared.data
    assert private is not None
    client = _smallest(private)
    part = data.parts[client][:count]
    included = _coins(private, len(part))
    kept = [row for row, own in zip(part, included, strict=True) if own] + data.parts[client][count:]
    parts = [kept if at == client else rows for at, rows in enumerate(data.parts)]
    plans = {client: replace(private.plans[client], rows=len(kept))}
    starts = {at: replace(plan, rows=len(parts[at])) for at, plan in private.starts.items()}
    held = RowCanaries([data.train[i] for i in part], included, prepared.config.training.batch_size)
    private = replace(private, plans={**private.plans, **plans}, starts=starts)
    changed = replace(prepared, privacy=private, data=replace(data, parts=parts))
    _train(changed, begin(changed), client, held)
    return _seen("rows", client, held, private.plans[client])


def _train(prepared: Prepared, saved: RunState, client: int, canaries: Canaries | RowCanaries) -> None:
    """The client's part of the run, from its start, with these in its steps."""
    private = prepared.privacy
    assert private is not None
    watched = replace(prepared, privacy=replace(private, canaries={client: canaries}))
    session = session_of(watched, saved, None)
    for number in range(1, private.plans[client].rounds + 1):
        saved.metrics.append(play_round(session, saved, number, [client]))


def _of_updates(prepared: Prepared, count: int) -> Look:
    """The same of whole clients, each round's mean being released once."""
    private = prepared.privacy
    assert private is not None
    plan = private.server_plan
    assert plan is not None
    included, seen, clip_norm = _coins(private, count), [], plan.clip_norm
    for number in range(1, plan.rounds + 1):
        clipped = ClippedSum(count, clip_norm)
        coins = private.samples.stream("canaries", number)
        for canary in poisson_sample(count, plan.sampling_probability, coins):
            if included[canary]:
                update = torch.zeros(count)
                update[canary] = BEYOND * clip_norm
                clipped.add(update)
        release = ClientRelease(plan, clip_norm, private.noise, number)
        seen.append(release.noised_mean(clipped).numpy() * plan.expected_cohort / clip_norm)
        clip_norm = release.next_clip_norm
    odds = log_odds(seen, plan.sampling_probability, plan.update_noise_multiplier)
    return Look("updates", None, len(seen), odds, included)


def _facts(private: PrivateRun, look: Look, stated: float | None) -> dict[str, Any]:
    plan, delta = private.accounts[look.client], private.guard.delta
    planned = _planned(private, look.client)
    facts: dict[str, Any] = {
        "unit": private.settings.protects,
        "private": private.settings.insecure_seed is None,
        "client": look.client,
        "kind": look.kind,
        "canaries": len(look.included),
        "included": int(look.included.sum()),
        "steps": look.releases,
        "sampling_probability": plan.sampling_probability,
        "noise_multiplier": plan.noise_multiplier,
        "delta": delta,
        "confidence": CONFIDENCE,
        "epsilon_at_least": epsilon_at_least(look.odds, look.included, delta, confidence=CONFIDENCE),
        "epsilon_stated": epsilon(planned, delta) if stated is None else stated,
        "best_true_positive_rates": best_true_positive_rates(planned),
    }
    facts["holds"] = facts["epsilon_at_least"] <= facts["epsilon_stated"]
    return facts | {"statement": " ".join(_sentences(facts))}


def _planned(private: PrivateRun, client: int | None) -> list[Mechanism]:
    """All that this client's plan releases."""
    plan = private.accounts[client]
    beside = [] if client is None else beside_rounds(client, private.starts, private.scores)
    return [*beside, plan.whole]


def _sentences(facts: Mapping[str, Any]) -> list[str]:
    bound, stated = facts["epsilon_at_least"], facts["epsilon_stated"]
    verdict = "which is as it should be" if facts["holds"] else "THE STATED PRIVACY DOES NOT HOLD"
    first = (
        f"{facts['canaries']:,} canaries ({PLACES[facts['kind']]}), each in by a fair coin, and "
        f"{facts['steps']:,} releases: what was seen of them proves epsilon of at least {bound:.3g} at delta "
        f"{facts['delta']:.3g} with {CONFIDENCE:.0%} confidence, beside the stated {rounded_up(stated):.3g}: "
        f"{verdict}."
    )
    return [first, in_words(facts["best_true_positive_rates"], f"one {facts['unit']}")]


def stated_of(run: Path) -> float | None:
    """The epsilon that a finished run states; None of one that states none."""
    file = run / "summary.json"
    privacy = read_json(file).get("privacy") if file.is_file() else None
    return None if privacy is None else privacy.get("epsilon")


def check_rows_are_here(run: Path) -> None:
    """Refuse a run whose rows are at nodes.

    Raises:
        InputError: only they could be audited, each at its own place.
    """
    file = run / "partition.json"
    if file.is_file() and read_json(file).get("kind") == "nodes":
        raise InputError(
            f"{run}: its rows are at nodes, and an audit trains on rows; audit the run's config on rows here"
        )
