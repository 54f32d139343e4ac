"""Secure aggregation and shared noise as the config has them, as flat arguments."""

from __future__ import annotations

import math

from fedsb.config import RunConfig
from fedsb.federation.secure.terms import Rules
from fedsb.privacy.plan import Sharing


def secure_rules(config: RunConfig, run: str = "") -> Rules | None:
    """The config's federation.secure_aggregation as flat arguments; `run`: what parties elsewhere call it."""
    settings = config.federation.secure_aggregation
    if settings is None:
        return None
    return Rules(run, settings.threshold, settings.largest_change, fewest_honest(config) or 0)


def cohort_size(config: RunConfig) -> int:
    """Clients of a round."""
    return config.federation.clients_per_round or config.federation.clients


def sharing_of(config: RunConfig) -> Sharing | None:
    """How clients share the noise of sums over rows; None: they do not."""
    fewest = fewest_honest(config)
    if fewest is None or not config.sums_gradients:
        return None
    return Sharing(rate=config.training.epochs, fewest=fewest, cohort=cohort_size(config))


def fewest_honest(config: RunConfig) -> int | None:
    """How many clients of a round make up its noise, at least; None where they add none of it."""
    settings, privacy, cohort = config.federation.secure_aggregation, config.privacy, cohort_size(config)
    if settings is None or privacy is None or not config.shares_noise:
        return None
    if privacy.honest is not None:
        return max(1, math.ceil(privacy.honest * cohort - 1e-9))
    return Rules("", settings.threshold, settings.largest_change).needed(cohort, cohort)
