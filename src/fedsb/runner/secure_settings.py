"""Secure aggregation and shared noise as the config has them, as flat arguments."""

from __future__ import annotations

import math

from fedsb.config import RunConfig
from fedsb.federation.secure.terms import Rules


def secure_rules(config: RunConfig, run: str = "") -> Rules | None:
    """The config's federation.secure_aggregation as flat arguments; `run`: what parties elsewhere call it."""
    settings = config.federation.secure_aggregation
    if settings is None:
        return None
    return Rules(run, settings.threshold, settings.largest_change, fewest_honest(config) or 0)


def fewest_honest(config: RunConfig) -> int | None:
    """How many clients of a round make up its noise, at least; None where they add none of it."""
    federation, privacy = config.federation, config.privacy
    if privacy is None or privacy.unit != "client" or federation.secure_aggregation is None:
        return None
    cohort = federation.clients_per_round or federation.clients
    if privacy.honest is not None:
        return max(1, math.ceil(privacy.honest * cohort - 1e-9))
    settings = federation.secure_aggregation
    return Rules("", settings.threshold, settings.largest_change).needed(cohort, cohort)
