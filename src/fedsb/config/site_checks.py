"""Which settings of scores at the clients, and of what stays with them, do not go together."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fedsb.config.method import able_names, method_of
from fedsb.config.run_config import RunConfig
from fedsb.config.sections.task import ClassificationConfig
from fedsb.methods import Method

SUGGESTED_NOISE = 10.0
"""Of scores at clients, over the counts' sensitivity."""


def site_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with them.

    Raises:
        InputError: the method, or an option of it, is unknown.
    """
    yield from _private(config)
    yield from _scores(config)
    yield from _baselines(config)
    yield from _stays(config, method_of(config))


def _private(config: RunConfig) -> Iterator[str]:
    privacy, evaluation = config.privacy, config.evaluation
    if privacy is None:
        return
    if not config.scores_at_clients:
        if privacy.score_noise_multiplier is not None:
            yield (
                "privacy.score_noise_multiplier: no client is scored; set evaluation.at_clients: true, or "
                "leave the noise out"
            )
        return
    key = "evaluation.at_clients" if evaluation.at_clients else "data.client_test"
    if privacy.unit == "client":
        yield (
            f"{key}: with privacy.unit: client nobody may learn whether a client is there, and its score "
            "tells; leave it out and score on data.test"
        )
    elif privacy.score_noise_multiplier is None:
        yield f"{key}: {_price(config.times_scored, privacy.delta or 1e-5)}"
    if evaluation.baselines:
        yield "evaluation.baselines: they train on private rows once more; leave them out with privacy"


def _price(releases: int, delta: float) -> str:
    """What to set, and what that costs at most by zero-concentrated privacy (Bun and Steinke 2016, arXiv
    1605.02065)."""
    rho = releases / (2 * SUGGESTED_NOISE**2)
    epsilon = rho + 2 * math.sqrt(rho * max(0.0, -math.log(delta)))
    return (
        "with privacy a client's counts of right answers leave with noise alone, which privacy.epsilon pays "
        f"for; set privacy.score_noise_multiplier, e.g. {SUGGESTED_NOISE:g}: {releases} scores would "
        f"then cost epsilon {epsilon:.2g} or less; or leave it out and score on data.test"
    )


def _scores(config: RunConfig) -> Iterator[str]:
    evaluation, task = config.evaluation, config.task
    if config.data.client_test and evaluation.at_clients is False:
        yield "data.client_test: with evaluation.at_clients: false these rows are for nothing; leave it out"
    if not config.scores_at_clients:
        return
    if evaluation.every is None:
        yield "evaluation.at_clients: evaluation.every is null, so nothing is scored; set it to 1 or more"
    if config.method.experts is not None:
        yield (
            "evaluation.at_clients: a mixture is scored on data.test alone, as it routes; leave at_clients "
            "and data.client_test out"
        )
    if config.data.group is not None:
        yield (
            "data.group: a client holds out rows one by one, so that a group would be on both sides; leave "
            "group out, or evaluation.at_clients and data.client_test"
        )
    if isinstance(task, ClassificationConfig) and task.metric == "spearman":
        yield "evaluation.at_clients: clients give sums, of which no rank correlation is made; take pearson"


def _baselines(config: RunConfig) -> Iterator[str]:
    if not config.evaluation.baselines:
        return
    if not config.scores_at_clients:
        yield "evaluation.baselines: each client's rows are scored; set evaluation.at_clients: true"
    partial = {
        "federation.client_ranks": config.federation.client_ranks,
        "federation.client_heads": config.federation.client_heads,
        config.method.refreshes or "": config.method.refreshes,
    }
    for key in (key for key, value in partial.items() if value):
        yield f"evaluation.baselines: not with {key}, which a client alone has no use for; leave one out"


def _stays(config: RunConfig, method: Method) -> Iterator[str]:
    federation, key = config.federation, "method.personal"
    if config.method.personal and not method.personal:
        yield f"{key}: only {able_names(lambda m: m.personal)} can have it, found {method.name}; leave it out"
    if not method.stays:
        return
    key = key if config.method.personal else f"method.name: {method.name}"
    if config.privacy is not None:
        yield (
            f"{key}: what stays with a client is made of its rows without noise and shapes all that it sends "
            "later, which no ledger covers; leave privacy out, or take another method"
        )
    if federation.apart:
        yield f"{key}: what stays with clients is in one process; leave {federation.apart} out"
    if federation.client_ranks:
        yield f"{key}: not with federation.client_ranks; leave one of the two out"
    if refreshes := config.method.refreshes:
        yield f"{key}: what stays with clients is over the first bases; leave {refreshes} out"
    if config.method.init.from_run is not None:
        yield f"{key}: what stayed with an earlier run's clients is not taken up; leave init.from_run out"
