"""Which settings the robust checks cannot go with, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedsb.config.run_config import RunConfig
from fedsb.config.sections import RobustConfig
from fedsb.methods import ALL, Method
from fedsb.methods.averaging.robust import FEWEST


def robust_faults(config: RunConfig, method: Method) -> Iterator[str]:
    """What is wrong with `federation.robust`, if it is set."""
    wanted = config.federation.robust
    if wanted is None:
        return
    yield from _settings(config)
    if wanted.average != "mean":
        yield from _average(config, wanted, method)
    if wanted.norm_bound is not None and not _sends_what_it_trains(method):
        yield (
            f"federation.robust.norm_bound: {method.name} starts anew each round, so there is no broadcast "
            f"to measure an update from; take one of {_names(_sends_what_it_trains)}"
        )


def _settings(config: RunConfig) -> Iterator[str]:
    if config.federation.weighting != "uniform":
        yield (
            "federation.robust: a client could claim any number of examples and outweigh all others; set "
            "federation.weighting: uniform"
        )
    if config.privacy is not None and config.privacy.unit == "client":
        yield (
            "federation.robust: privacy.unit client clips every update to privacy.clip_norm, and its noise "
            "is made for a sum, not for another average; leave federation.robust out"
        )


def _average(config: RunConfig, wanted: RobustConfig, method: Method) -> Iterator[str]:
    federation, key = config.federation, "federation.robust.average"
    if not method.averages:
        able = _names(lambda m: m.averages)
        yield (
            f"{key}: {method.name} makes more of its clients' updates than one mean, which {wanted.average} "
            f"could replace; take one of {able}, or norm_bound alone"
        )
    if federation.client_ranks or federation.client_heads:
        yield (
            f"{key}: with federation.client_ranks or client_heads not every client sends every number; leave "
            "them out, or average: mean"
        )
    cohort = federation.clients_per_round or federation.clients
    if cohort < FEWEST:
        yield (
            f"{key}: of {cohort} updates in a round the {wanted.average} is the mean; expected {FEWEST} "
            "clients or more (federation.clients, clients_per_round), or average: mean"
        )


def _sends_what_it_trains(method: Method) -> bool:
    return set(method.trains(1)) - {"s"} <= set(method.sends)


def _names(able: Callable[[Method], bool]) -> str:
    return ", ".join(method.name for method in ALL if able(method))
