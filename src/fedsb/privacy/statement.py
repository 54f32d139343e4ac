"""What a private run may claim, in words: the unit, the relation, the mechanism, and what is not covered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedsb.privacy.odds import in_words

OBSERVABLE = "how long anything took, and who answered in time or failed, and with what reason"
OTHER_DATA = (
    "test data; other runs on the same data, such as those that chose the settings (learning rate, clip "
    "norm, method)."
)


def statement(facts: Mapping[str, Any]) -> str:
    """A paragraph to quote, from the section `privacy` of summary.json.

    Nothing in it is a setting alone: epsilon, steps and rounds are those of the ledger.
    """
    if not facts["private"]:
        return (
            "This run is NOT private: its noise came from a fixed seed (privacy.insecure_seed), so that "
            "anyone can take it away again. It is good for tests alone."
        )
    of_unit = _of_clients if facts["unit"] == "client" else _of_examples
    return " ".join([*of_unit(facts), _accounting(facts), *_odds(facts), *_delta(facts)])


def _of_clients(facts: Mapping[str, Any]) -> list[str]:
    if facts.get("fewest_honest"):
        return _of_clients_that_share_the_noise(facts)
    return [
        f"All models that this run made, over {_rounds(facts)}, are together (epsilon, delta)-differentially "
        f"private with {_bound(facts)}, for data sets that differ in one client, whose update is present or "
        "blanked.",
        "Each client joined each round by its own coin (Poisson sampling); its update was clipped to an L2 "
        f"norm ({'at first ' if facts['quantile'] else ''}{facts['clip_norm']:g}), and the server added "
        f"{_client_noise(facts)}, {_source(facts)}.",
        "The server is trusted. Taken as public: how many clients there are, and how many examples each has. "
        f"{_cohorts(facts)}Not covered: how many bytes were sent; {OBSERVABLE}; {OTHER_DATA}",
    ]


def _of_clients_that_share_the_noise(facts: Mapping[str, Any]) -> list[str]:
    fewest = facts["fewest_honest"]
    return [
        f"All that the server learned of updates in this run, over {_rounds(facts)}, which is one sum a "
        "round, and all models made of it, are together (epsilon, delta)-differentially private with "
        f"{_bound(facts)}, for data sets that differ in one client, whose update is present or blanked.",
        f"Each client clipped its update to the L2 norm {facts['clip_norm']:g}, rounded it to whole numbers "
        "and added its share of discrete Gaussian noise before its masks (secure aggregation): the shares of "
        f"any {fewest} of a round's {facts['cohort']} clients are together noise of {_noise(facts)} times "
        f"the sum's sensitivity, {_source(facts)}. A round with fewer clients was not unmasked.",
        f"No server is trusted with an update. Trusted: that {fewest} clients or more of each sum followed "
        "the protocol, kept their noise to themselves and did not collude with the server; and whose keys "
        "are whose, as each node's peers say. Taken as public: how many clients there are, how many examples "
        f"each has, and who took part in which round. Not covered: {OBSERVABLE}; {OTHER_DATA}",
    ]


def _client_noise(facts: Mapping[str, Any]) -> str:
    """The noise of one round's whole release."""
    if facts.get("bands", 1) > 1:
        return f"{_banded_noise(facts)} rounds"
    if not facts["quantile"]:
        return f"Gaussian noise of {_noise(facts)} times that norm to the sum, once"
    return (
        f"Gaussian noise of {facts['update_noise_multiplier']:.4g} times that norm to the sum, and of "
        f"{facts['count_noise_std']:.4g} to the number of updates within it, which the next round's norm "
        f"follows: together one release of noise multiplier {_noise(facts)}"
    )


def _cohorts(facts: Mapping[str, Any]) -> str:
    """What the lists `clients` and `rejected` of metrics.jsonl, or a look at the traffic, take away."""
    times, known = facts["rounds_of_one_client"], facts["epsilon_cohorts_known"]
    return (
        "Taken as unknown: who took part in which round. Against whoever reads that, as metrics.jsonl lists "
        f"it, sampling hides nothing: for the client that was asked most often, {_times(times)}, epsilon is "
        f"then {rounded_up(known):.3g}. "
    )


def _of_examples_that_share_the_noise(facts: Mapping[str, Any]) -> list[str]:
    fewest, cohort = facts["fewest_honest"], facts["cohort"]
    return [
        "All that the server learned of the rows of any one client in this run, over "
        f"{_rounds(facts)}, which is one sum a round, and all models made of it, are together (epsilon, "
        f"delta)-differentially private with at most {_bound(facts)}, for data sets that differ in "
        f"{_differ(facts)}.",
        *_several_clients(facts),
        f"Each round was one step: each {facts['unit']} joined by its own coin of probability "
        f"{facts['sampling_rate']:g} (Poisson sampling), from a secret of its client; its "
        f"gradient{_sum_of_rows(facts)} was clipped to the L2 norm {facts['clip_norm']:g}; and each client "
        "rounded its sum to whole numbers and added its share of discrete Gaussian noise before its masks "
        f"(secure aggregation). The shares of any {fewest} of a round's {cohort} clients are together noise "
        f"of {_noise(facts)} times the sum's sensitivity, {_source(facts)}. A round with fewer clients was "
        "not unmasked.",
        f"No server is trusted with one client's sum. Trusted: that {fewest} clients or more of each sum "
        "followed the protocol, kept their noise and their coins to themselves and did not collude with "
        "the server; and whose keys are whose, as each node's peers say. Against a server with which none "
        f"of {cohort} colludes the noise is {math.sqrt(cohort / fewest):.3g} times as much. Whoever had one "
        f"client's sum without its masks would face a share alone, {1 / math.sqrt(fewest):.3g} of the noise, "
        "and this epsilon would not hold.",
        *_of_groups(facts),
        f"Taken as public: how many examples{_and_owners(facts)} each client has, who took part in which "
        f"round, and the set of labels. Not covered: {OBSERVABLE}; {OTHER_DATA}",
    ]


def _of_examples(facts: Mapping[str, Any]) -> list[str]:
    if facts.get("fewest_honest"):
        return _of_examples_that_share_the_noise(facts)
    start = " and the initialization" if _has_start(facts) else ""
    return [
        f"All that left any one client in this run, over {_rounds(facts)}{start}{_with_scores(facts)}, is "
        f"together (epsilon, delta)-differentially private with at most {_bound(facts)}, for data sets that "
        f"differ in {_differ(facts)}.",
        *_several_clients(facts),
        f"Each {facts['unit']} joined each step by its own coin (Poisson sampling), from a secret of its "
        "client; its "
        f"gradient{_sum_of_rows(facts)} was clipped to the L2 norm "
        f"{facts['clip_norm']:g}{_followed(facts)}, and the client added "
        f"{_example_noise(facts)}, {_source(facts)}.",
        *_score_noise(facts),
        *_of_groups(facts),
        f"Taken as public: how many examples{_and_owners(facts)} each client has{_by_expert(facts)}, and "
        "the set of labels. Not "
        "covered: "
        f"{OBSERVABLE}; {OTHER_DATA}",
    ]


def _differ(facts: Mapping[str, Any]) -> str:
    if facts["unit"] == "owner":
        owner = f"one owner (column {facts['owner']})"
        return f"all examples of {owner} at that client, which are present or blanked"
    return f"one {_examples(facts)} of that client, which is present or blanked"


def _several_clients(facts: Mapping[str, Any]) -> list[str]:
    if facts["unit"] != "owner":
        return []
    if facts["units"] is not None:
        return ["No owner has examples at several clients: that was checked."]
    return [
        "An owner with examples at several clients has this at each of them: what they release adds up, "
        "which "
        "nobody could check, since each keeps its rows."
    ]


def _sum_of_rows(facts: Mapping[str, Any]) -> str:
    return ", summed over all its examples," if facts["unit"] == "owner" else ""


def _and_owners(facts: Mapping[str, Any]) -> str:
    return " and owners" if facts["unit"] == "owner" else ""


def _of_groups(facts: Mapping[str, Any]) -> list[str]:
    """What somebody with several examples has, where a column looks as if it said whose they are."""
    groups = facts.get("groups")
    if not groups:
        return []
    if not all(map(math.isfinite, groups.values())):
        return [
            f"The column {facts['owner_like']} has values that repeat (which is taken as public), and the "
            "bound above is one example's: a person with several has less protection, of which nothing is "
            "known here. privacy.owner would protect all examples of one."
        ]
    bounds = [f"with {size} examples epsilon = {rounded_up(bound):.3g}" for size, bound in groups.items()]
    return [
        f"The column {facts['owner_like']} has values that repeat (which is taken as public), and the "
        "bound above "
        f"is one example's: a person {', '.join(bounds)}, at the same delta. privacy.owner would protect all "
        "examples of one."
    ]


def _scores(facts: Mapping[str, Any]) -> int:
    """The most scores of any one client."""
    return max(client.get("scores", 0) for client in facts["per_client"].values())


def _with_scores(facts: Mapping[str, Any]) -> str:
    return " and its scores" if _scores(facts) else ""


def _examples(facts: Mapping[str, Any]) -> str:
    return "example, to train or to be scored on," if _scores(facts) else "training example"


def _score_noise(facts: Mapping[str, Any]) -> list[str]:
    """Of the counts at the clients, where there were any."""
    if not (times := _scores(facts)):
        return []
    noise = facts["score_noise_multiplier"]
    return [
        f"Each client was scored at most {_times(times)} on examples that it never trains on, by counts of "
        "each class (of it, taken for it, both). One example moves all of them together by at most the root "
        f"of 3 in L2, and the client added Gaussian noise of {noise:.4g} times that. Epsilon adds this up "
        "with the training, though no example is in both."
    ]


def _followed(facts: Mapping[str, Any]) -> str:
    return " at first in each round" if facts["quantile"] else ""


def _example_noise(facts: Mapping[str, Any]) -> str:
    """The noise of one step's whole release."""
    if facts.get("bands", 1) > 1:
        return f"{_banded_noise(facts)} steps"
    if not facts["quantile"]:
        return f"Gaussian noise of {_noise(facts)} times that norm to each step's sum"
    return (
        "Gaussian noise to each step's sum and to the number of gradients within the norm, which the next "
        f"step's norm follows: together one release of noise multiplier {_noise(facts)}"
    )


def _banded_noise(facts: Mapping[str, Any]) -> str:
    return (
        f"Gaussian noise of {_noise(facts)} times that norm, correlated by a matrix of {facts['bands']} "
        "bands so that "
        f"it cancels in part (each {facts['unit']} had a coin in every {facts['bands']}-th alone), to "
        "the sums of all"
    )


def _by_expert(facts: Mapping[str, Any]) -> str:
    return ", how many of each expert" if facts.get("counts_by_expert_public") else ""


def _rounds(facts: Mapping[str, Any]) -> str:
    return f"{facts['rounds']} round{'' if facts['rounds'] == 1 else 's'}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _bound(facts: Mapping[str, Any]) -> str:
    return f"epsilon = {rounded_up(facts['epsilon']):.3g} and delta = {facts['delta']:.3g}"


def rounded_up(epsilon: float) -> float:
    """To three digits and never down: what is claimed must hold."""
    if epsilon == 0 or not math.isfinite(epsilon):
        return epsilon
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return math.ceil(epsilon / unit * (1 - 1e-12)) * unit


def _noise(facts: Mapping[str, Any]) -> str:
    """The noise multiplier of the client with the least noise, and of the one with the most."""
    noises = [client["noise_multiplier"] for client in facts["per_client"].values()]
    least, most = f"{min(noises):.4g}", f"{max(noises):.4g}"
    return least if least == most else f"{least} to {most}"


def _source(facts: Mapping[str, Any]) -> str:
    return f"drawn in double precision from {facts['noise_source']}"


def _accounting(facts: Mapping[str, Any]) -> str:
    if facts.get("fewest_honest") and facts["unit"] != "client":
        return (
            "Epsilon composes every release that was made, repeated ones included, with the accountant "
            f"{facts['accountant']} at whole orders, at which samples with discrete Gaussian noise lose what "
            "those with Gaussian noise do."
        )
    if facts.get("fewest_honest"):
        return (
            "Epsilon composes every release that was made, repeated ones included, without any gain from "
            f"sampling, with the accountant {facts['accountant']}, which bounds sums of discrete Gaussians."
        )
    return (
        f"Epsilon composes every release that was made, repeated ones included, with the accountant "
        f"{facts['accountant']} (Renyi accounting gives {facts['epsilon_rdp']:.3g})."
    )


def _odds(facts: Mapping[str, Any]) -> list[str]:
    best = facts.get("best_true_positive_rates")
    return [in_words(best, f"one {facts['unit']}")] if best else []


def _delta(facts: Mapping[str, Any]) -> list[str]:
    """Said where delta is larger than advised; where it is far larger a run is refused."""
    if facts["units"] is None:
        return []
    advised, unit = 0.1 / facts["units"], facts["unit"]
    if facts["delta"] <= advised:
        return []
    return [
        f"Delta is above a tenth of one over the {facts['units']} {unit}s, {advised:.2g}, which is the usual "
        "bound: it allows for more than a tenth of a chance that some one of them is given away."
    ]


def _has_start(facts: Mapping[str, Any]) -> bool:
    return any(client["epsilon_start"] > 0 for client in facts["per_client"].values())
