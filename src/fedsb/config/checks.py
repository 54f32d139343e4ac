"""Which settings do not go together: all of them refused at once, before anything is read or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from fedsb.config.expert_checks import expert_faults
from fedsb.config.method import able_names, method_of
from fedsb.config.optimization_checks import optimization_faults
from fedsb.config.privacy_checks import privacy_faults
from fedsb.config.run_config import RunConfig
from fedsb.config.sections.federation import FederationConfig
from fedsb.config.sections.task import AnswerSection
from fedsb.config.secure_checks import secure_faults
from fedsb.config.shared_noise_checks import shared_noise_faults
from fedsb.config.site_checks import site_faults
from fedsb.errors import InputError
from fedsb.methods import Method
from fedsb.methods.averaging.robust import FEWEST


def check_settings(config: RunConfig) -> None:
    """Refuse settings that do not belong together.

    Raises:
        InputError: an unknown method, heads that do not divide, mixed ranks a method cannot do, private data
            left unprotected, ...; one line per fault.
    """
    parts = (
        _cohort,
        _packing,
        site_faults,
        method_faults,
        optimization_faults,
        expert_faults,
        secure_faults,
        privacy_faults,
        shared_noise_faults,
    )
    faults = [fault for part in parts for fault in part(config)]
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        raise InputError("\n  ".join([f"config: {len(faults)} wrong", *faults]))


def _cohort(config: RunConfig) -> Iterator[str]:
    cohort, clients = config.federation.clients_per_round, config.federation.clients
    if cohort is not None and cohort > clients:
        yield (
            f"federation.clients_per_round: expected at most {clients} (all clients), found {cohort}; "
            "null takes all of them"
        )
    if config.federation.processes > 1 and config.federation.engine.kind in ("stacked", "auto"):
        yield (
            "federation.engine: processes train one client after another each; leave engine out, or set "
            "federation.processes: 1"
        )
    if (sites := config.federation.sites) is not None and len(sites) != clients:
        expected = f"expected {clients} names, one for each of federation.clients"
        yield f"federation.sites: {expected}, found {len(sites)}"


def _packing(config: RunConfig) -> Iterator[str]:
    if not config.training.packing:
        return
    reasons = {
        "task.kind is none that answers (causal-lm, chat)": not isinstance(config.task, AnswerSection),
        "privacy.unit example clips each row's gradient, and a row would be several examples": (
            config.privacy is not None and config.privacy.unit == "example"
        ),
        "a mixture routes whole rows": config.method.experts is not None,
    }
    yield from (f"training.packing: {reason}; leave it out" for reason, holds in reasons.items() if holds)


def robust_faults(config: RunConfig, method: Method) -> Iterator[str]:
    """What is wrong with `federation.robust`, if it is set."""
    robust = config.federation.robust
    if robust is None:
        return
    yield from _robust_settings(config)
    if robust.average != "mean":
        yield from _robust_average(config, robust.average, method)
    if robust.norm_bound is not None and not method.sends_what_it_trains:
        able = able_names(lambda m: m.sends_what_it_trains)
        yield (
            f"federation.robust.norm_bound: {method.name} starts again each round, so there is no broadcast "
            f"to measure an update from; take one of {able}"
        )


def _robust_settings(config: RunConfig) -> Iterator[str]:
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


def _robust_average(config: RunConfig, average: str, method: Method) -> Iterator[str]:
    federation, key = config.federation, "federation.robust.average"
    if not method.averages:
        able = able_names(lambda m: m.averages)
        yield (
            f"{key}: {method.name} makes more of its clients' updates than one mean, which {average} "
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
            f"{key}: of {cohort} updates in a round the {average} is the mean; expected {FEWEST} "
            "clients or more (federation.clients, clients_per_round), or average: mean"
        )


def method_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with the settings of the config's method.

    Raises:
        InputError: the method or an option of it is unknown.
    """
    method = method_of(config)
    for part in (_heads, _only_for_some, _mixed, _from_run, robust_faults):
        yield from part(config, method)


def _heads(config: RunConfig, method: Method) -> Iterator[str]:
    heads, rank = config.method.heads, config.method.rank
    if heads is None:
        return
    if heads > 1 and not method.has_core:
        yield (
            f"method.heads: {method.name} has no core to split, found {heads}; leave it out, or take one of "
            f"{able_names(lambda m: m.has_core)}"
        )
    if rank % heads:
        fits = [n for n in range(1, rank + 1) if rank % n == 0]
        yield (
            f"method.heads: expected a divisor of method.rank = {rank} ({', '.join(map(str, fits))}), "
            f"found {heads}"
        )


def _only_for_some(config: RunConfig, method: Method) -> Iterator[str]:
    settings = config.method
    refreshes = settings.refreshes
    if refreshes is not None and not method.refreshes:
        able = able_names(lambda m: m.refreshes)
        yield f"{refreshes}: only {able} can start bases again, found {method.name}; leave it out"
    if settings.refresh_every is not None and settings.refresh_when is not None:
        yield "method.refresh_when: takes the place of method.refresh_every; leave one of the two out"
    if settings.residual_rank is not None and not method.residual:
        able = able_names(lambda m: m.residual)
        yield f"method.residual_rank: only {able} sends a residual, found {method.name}; leave it out"
    if (refreshes or method.changes_base) and config.model.load_in_4bit:
        key = refreshes or f"method.name: {method.name}"
        yield f"{key} changes base weights, which 4 bits cannot hold; set model.load_in_4bit: false"


def _from_run(config: RunConfig, method: Method) -> Iterator[str]:
    init = config.method.init
    if init.from_run is None:
        return
    if config.privacy is not None:
        yield (
            "method.init.from_run: what the earlier run learnt from its rows is beyond this run's guarantee; "
            "leave it out. If those rows need no protection, `fedsb export RUN --format merged` makes a base "
            "model of it, for model.path"
        )
    if method.experts is not None:
        yield f"method.init.from_run: {method.name} starts experts of its own; leave it out"
    if init.public is not None and config.method.refreshes is None:
        yield "method.init.public: with from_run no start looks at examples; leave one of the two out"


def _mixed(config: RunConfig, method: Method) -> Iterator[str]:
    federation, heads = config.federation, method.heads_of(config.method.heads)
    yield from _per_client(federation, "client_ranks", config.method.rank, "method.rank")
    yield from _per_client(federation, "client_heads", heads, "the core's heads")
    if federation.client_ranks and not method.mixed_ranks:
        able = able_names(lambda m: m.mixed_ranks)
        yield (
            f"federation.client_ranks: {method.name} needs one rank for all clients; leave client_ranks out, "
            f"or take one of {able}"
        )
    if federation.client_heads and not (method.has_core and heads > 1):
        able = able_names(lambda m: m.has_core)
        yield f"federation.client_heads: there is one head; set method.heads, with one of {able}"
    if federation.client_heads and config.training.weight_decay:
        yield (
            "federation.client_heads: training.weight_decay would shrink the heads a client does not train; "
            "set it to 0"
        )
    refreshes = config.method.refreshes
    for key in ("privacy", refreshes or "", "model.device_map") if federation.apart else ():
        if key and attrgetter(key)(config) is not None:
            yield f"{federation.apart}: with {key} clients train in one process; leave one of the two out"
    if federation.engine.kind == "ray" and federation.processes > 1:
        yield "federation.processes: federation.engine: ray has workers of its own; leave one of the two out"
    if federation.client_ranks and refreshes:
        yield (
            f"{refreshes}: with federation.client_ranks small clients cannot fold the whole core; "
            "leave one of the two out"
        )


def _per_client(federation: FederationConfig, key: str, largest: int, limit: str) -> Iterator[str]:
    numbers: list[int] | None = getattr(federation, key)
    if numbers is None:
        return
    if len(numbers) != federation.clients:
        yield (
            f"federation.{key}: expected {federation.clients} numbers, one for each of federation.clients, "
            f"found {len(numbers)}"
        )
    if max(numbers, default=0) > largest:
        yield f"federation.{key}: expected numbers of at most {largest} ({limit}), found {max(numbers)}"
