"""What a private run may claim, in words: the unit, the relation, the mechanism, and what is not covered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

OTHER_DATA = "test data; other runs on the same data, such as those that chose the settings."


def statement(facts: Mapping[str, Any]) -> str:
    """A paragraph to quote, from the section `privacy` of summary.json.

    Nothing in it is a setting alone: epsilon, steps and rounds are those of the ledger.
    """
    if not facts["private"]:
        return (
            "This run is NOT private: its noise came from a fixed seed (privacy.insecure_seed), so that "
            "anyone can take it away again. It is good for tests alone."
        )
    return " ".join([_claim(facts), _mechanism(facts), _accounting(facts), _left_out(facts)])


def _claim(facts: Mapping[str, Any]) -> str:
    bound = f"epsilon = {rounded_up(facts['epsilon']):.3g} and delta = {facts['delta']:.3g}"
    rounds = f"{facts['rounds']} round{'' if facts['rounds'] == 1 else 's'}"
    if facts["unit"] == "client":
        return (
            f"All models that this run made, over {rounds}, are together (epsilon, delta)-"
            f"differentially private with {bound}, for data sets of clients that differ by adding or "
            "removing any one client with all its examples."
        )
    return (
        f"All that left any one client in this run, over {rounds}"
        + (" and the initialization" if _has_start(facts) else "")
        + f", is together (epsilon, delta)-differentially private with at most {bound}, for data sets that "
        "differ by adding or removing any one training example of that client."
    )


def rounded_up(epsilon: float) -> float:
    """To three digits and never down: what is claimed must hold."""
    if epsilon == 0 or not math.isfinite(epsilon):
        return epsilon
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return math.ceil(epsilon / unit * (1 - 1e-12)) * unit


def _mechanism(facts: Mapping[str, Any]) -> str:
    noise, clip = _noise(facts), facts["clip_norm"]
    if facts["unit"] == "client":
        return (
            "Each client joined each round by its own coin (Poisson sampling); its update was clipped to an "
            f"L2 norm (at first {clip:g}), and the server added Gaussian noise of {noise} times the "
            "sum's sensitivity to the sum, once."
        )
    return (
        "Each example joined each step by its own coin (Poisson sampling); its gradient was clipped to the "
        f"L2 norm {clip:g}, and the client added Gaussian noise of {noise} times that norm, from "
        "its operating system's entropy, to each step's sum."
    )


def _noise(facts: Mapping[str, Any]) -> str:
    """Of the client with the least noise, and of the one with the most."""
    least, most = (
        f"{pick(of['noise_multiplier'] for of in facts['per_client'].values()):.4g}" for pick in (min, max)
    )
    return least if least == most else f"{least} to {most}"


def _accounting(facts: Mapping[str, Any]) -> str:
    return (
        f"Epsilon composes every release that was made, repeated ones included, with the accountant "
        f"{facts['accountant']} (Renyi accounting gives {facts['epsilon_rdp']:.3g})."
    )


def _left_out(facts: Mapping[str, Any]) -> str:
    if facts["unit"] == "client":
        return (
            f"The server is trusted. {_assumed(facts, 'who takes part')}Not covered: who took part and how "
            f"many bytes were sent, as the run folder lists them; {OTHER_DATA}"
        )
    return (
        "Taken as public: how many examples each client has, and the set of labels. "
        f"{_assumed(facts, 'the batches')}Not covered: {OTHER_DATA}"
    )


def _assumed(facts: Mapping[str, Any], what: str) -> str:
    if facts["sampling_secret"]:
        return ""
    return f"Assumed: the run's seed, which decides {what}, is unknown to whoever sees the results. "


def _has_start(facts: Mapping[str, Any]) -> bool:
    return any(of["epsilon_start"] > 0 for of in facts["per_client"].values())
