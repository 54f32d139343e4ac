"""What keys of summary.json and of a config are called on a page, and their values in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsb.report.load import mapping, number
from fedsb.report.units import DASH, THIN, count, decimal, percent

NAMES = {
    "epsilon": "ε",
    "delta": "δ",
    "epsilon_rdp": "ε by Renyi accounting",
    "epsilon_start": "ε of the start alone",
    "epsilon_rounds": "ε of the rounds alone",
    "epsilon_scores": "ε of the scores alone",
    "epsilon_cohorts_known": "ε for who knows the cohorts",
    "target_epsilon": "ε asked for",
    "groups": "ε of a person with more rows",
    "unit": "what is protected",
    "owner": "column of owners",
    "owner_like": "column like an owner's",
    "relation": "neighbours differ in",
    "units": "units, at fewest",
    "bands": "steps over which noise cancels",
    "quantile": "clip norm follows the quantile",
    "score_noise_multiplier": "noise multiplier of scores",
    "start_noise_multiplier": "noise multiplier of the start",
    "update_noise_multiplier": "noise multiplier of updates",
    "count_noise_std": "noise of the count within the norm",
    "counts_by_expert_public": "counts by expert are public",
    "best_true_positive_rates": "most that can be found",
    "fewest_honest": "honest clients, at least",
    "cohort": "clients of a round",
    "rounds_of_one_client": "most rounds of one client",
    "stopped_early": "stopped early, budget used up",
    "kind": "bases from",
    "rule": "estimated by",
    "refreshed_after": "new bases after rounds",
    "exact": "average is exact",
    "num_test_examples": "test examples",
}
USUAL = {
    "private": True,
    "bands": 1,
    "counts_by_expert_public": False,
    "stopped_early": False,
    "epsilon_start": 0,
    "epsilon_scores": 0,
    "scores": 0,
    "count_noise_std": 0,
}
"""Values that say nothing, as None does: their keys are left out."""


def said(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value in words) of what is set and other than usual."""
    return [(name_of(key), _value_of(key, value)) for key, value in values.items() if tells(key, value)]


def tells(key: str, value: object) -> bool:
    """Whether this value of a key is worth a place."""
    return value is not None and (key not in USUAL or value != USUAL[key])


def name_of(key: str) -> str:
    """
    >>> name_of("target_epsilon"), name_of("clip_norm")
    ('ε asked for', 'clip norm')
    """
    return NAMES.get(key, key.replace("_", " "))


def _value_of(key: str, value: object) -> str:
    parts = mapping(value)
    if key == "best_true_positive_rates" and parts:
        return ", ".join(_odds(false, number(true)) for false, true in parts.items())
    if key == "groups" and parts:
        return ", ".join(f"{text_of(epsilon)} with {rows} rows" for rows, epsilon in parts.items())
    return text_of(value)


def _odds(false: str, true: float | None) -> str:
    try:
        return f"{percent(true)} at {text_of(100 * float(false))}{THIN}% false alarms"
    except ValueError:
        return f"{percent(true)} at {false}"


def text_of(value: object) -> str:
    """A value of JSON in words."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, int):
        return count(value)
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or DASH
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text_of(item)}" for name, item in value.items())
    return str(value)
