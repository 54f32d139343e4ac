"""Which settings do not go with secure aggregation: what needs more of a client than its part of one sum."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from fedsb.config.method import able_names, method_of
from fedsb.config.run_config import RunConfig
from fedsb.methods import Method

KEY = "federation.secure_aggregation"


def secure_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with `federation.secure_aggregation`, if it is set.

    Raises:
        InputError: the method is unknown.
    """
    if config.federation.secure_aggregation is None:
        return
    if find_spec("cryptography") is None:
        yield f"{KEY}: the package cryptography is needed and missing; pip install 'fedsb[dp]'"
    method = method_of(config)
    for part in (_threshold, _method, _parts, _single_updates, _start):
        yield from part(config, method)


def _threshold(config: RunConfig, method: Method) -> Iterator[str]:
    federation, settings = config.federation, config.federation.secure_aggregation
    assert settings is not None
    cohort = federation.clients_per_round or federation.clients
    if cohort < 2:
        yield f"{KEY}: the sum over {cohort} client is that client's update; take 2 clients a round or more"
    if settings.threshold > 1 and settings.threshold > cohort:
        yield (
            f"{KEY}.threshold: expected at most {cohort} (the clients of a round), found "
            f"{settings.threshold:g}; lower it, or give a share such as 0.67"
        )


def _method(config: RunConfig, method: Method) -> Iterator[str]:
    if not method.averages:
        able = able_names(lambda m: m.averages and m.experts is None)
        yield (
            f"{KEY}: {method.name} needs more of its clients' updates than their sum, and the server would "
            f"learn nothing but that; take one of {able}"
        )
    elif method.experts is not None:
        yield f"{KEY}: an expert that one client trains would be in no sum with others; leave it out"


def _parts(config: RunConfig, method: Method) -> Iterator[str]:
    federation = config.federation
    for key in ("client_ranks", "client_heads"):
        if getattr(federation, key):
            yield f"{KEY}: with federation.{key} not every client sends every number; leave one out"
    if federation.control_variates or config.training.moments == "averaged":
        key = "federation.control_variates" if federation.control_variates else "training.moments: averaged"
        yield f"{KEY}: what {key} sends beside an update is not under masks; leave one of the two out"
    if federation.upload_dtype != "float32":
        yield (
            f"federation.upload_dtype: with {KEY} updates travel as whole numbers of 32 bits, found "
            f"{federation.upload_dtype}; leave it out"
        )


def _single_updates(config: RunConfig, method: Method) -> Iterator[str]:
    federation, privacy = config.federation, config.privacy
    if federation.robust is not None:
        yield (
            f"federation.robust: a median, a trimmed mean and a norm bound look at each client's update, "
            f"which {KEY} hides from the server; leave one of the two out"
        )
    if privacy is not None and privacy.unit == "client" and privacy.quantile is not None:
        yield (
            f"privacy.quantile: the share of updates within the clip norm is not added up with {KEY}; leave "
            "quantile out, or clip_norm: auto"
        )
    if privacy is not None and privacy.unit == "client" and privacy.mechanism == "banded":
        yield (
            f"privacy.mechanism: with {KEY} clients share the noise, which is independent between rounds; "
            "leave banded out"
        )
    if config.scores_at_clients:
        yield (
            f"evaluation.at_clients, data.client_test: the server would learn each client's own score, which "
            f"is no sum; leave them out with {KEY}, and score on data.test"
        )


def _start(config: RunConfig, method: Method) -> Iterator[str]:
    init = config.method.init
    if refreshes := config.method.refreshes:
        yield (
            f"{refreshes}: after it clients are sent different messages, and {KEY} hides those "
            "alone who are asked the same; leave one of the two out"
        )
    if init.public is None and init.samples < 2 and config.privacy is None:
        yield f"method.init.samples: with {KEY} two clients or more look at some for the start; raise it"
    from_gradients = method.draw is None and method.bases == "init" and init.kind == "gradient"
    if not from_gradients or init.public is not None:
        return
    plain = init.rule != "moments" and not init.private
    if plain and init.upload != "sketch":
        yield (
            f"method.init.upload: {init.upload} of each client would reach the server as they are; with "
            f"{KEY} take sketch, of which it needs the sum alone"
        )
