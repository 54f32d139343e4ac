"""Which settings of the federated optimization do not go with the method or with each other."""

from __future__ import annotations

from collections.abc import Iterator

from fedsb.config.method import able_names, method_of
from fedsb.config.run_config import RunConfig
from fedsb.methods import Method


def optimization_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with them.

    Raises:
        InputError: the method, or an option of it, is unknown.
    """
    method = method_of(config)
    yield from _server(config, method)
    yield from _control_variates(config, method)
    yield from _moments(config, method)
    yield from _bases(config, method)


def takes_server_steps(method: Method) -> bool:
    """Whether a server may step along this method's averaged update."""
    return method.averages and method.sends_what_it_trains and not method.turns


def _server(config: RunConfig, method: Method) -> Iterator[str]:
    if config.federation.server is None:
        return
    if not takes_server_steps(method):
        yield (
            f"federation.server: {method.name} gives no averaged update whose numbers mean the same in each "
            f"round; leave it out, or take one of {able_names(takes_server_steps)}"
        )
    if refreshes := config.method.refreshes:
        yield f"federation.server: momentum is over bases that {refreshes} replaces; leave one out"


def _control_variates(config: RunConfig, method: Method) -> Iterator[str]:
    key, federation = "federation.control_variates", config.federation
    if not federation.control_variates:
        return
    if not method.sends_plainly:
        yield (
            f"{key}: {method.name} does not send just what it trains in each step; leave them out, or take "
            f"one of {able_names(lambda m: m.sends_plainly)}"
        )
    if config.training.optimizer != "sgd":
        yield (
            f"{key}: they take a client's mean gradient from where its steps led, which AdamW's do not tell; "
            "set training.optimizer: sgd"
        )
    elif config.training.momentum:
        yield f"{key}: with training.momentum a client's steps are no mean of gradients; leave it 0"
    if config.privacy is not None:
        yield f"{key}: a client's own is made of its rows without noise; leave privacy or {key} out"
    without = {
        "federation.robust": federation.robust,
        "federation.client_ranks": federation.client_ranks,
        "federation.client_heads": federation.client_heads,
        federation.apart or "": federation.apart,
        config.method.refreshes or "": config.method.refreshes,
        "evaluation.baselines": config.evaluation.baselines,
    }
    yield from (
        f"{key}: not with {other}; leave one of the two out" for other, set_ in without.items() if set_
    )


def lasting_moments(method: Method) -> bool:
    """Whether Adam's moments of one round mean something in the next."""
    return method.sends_plainly and method.trains(1) == method.trains(2)


def _moments(config: RunConfig, method: Method) -> Iterator[str]:
    training, federation = config.training, config.federation
    key = f"training.moments: {training.moments}"
    if training.moments == "fresh":
        return
    if training.optimizer != "adamw":
        yield f"{key}: {training.optimizer} has none; leave moments out, or set training.optimizer: adamw"
    if not lasting_moments(method):
        yield (
            f"{key}: what {method.name} trains is not the same numbers from round to round; leave moments "
            f"out, or take one of {able_names(lasting_moments)}"
        )
    averaged = training.moments == "averaged"
    without = {
        "privacy.unit: client": config.privacy is not None and config.privacy.unit == "client",
        "federation.robust": federation.robust is not None and averaged,
        "federation.client_ranks": federation.client_ranks,
        "federation.client_heads": federation.client_heads,
        federation.apart or "": federation.apart and not averaged,
        config.method.refreshes or "": config.method.refreshes,
        "evaluation.baselines": config.evaluation.baselines and averaged,
    }
    yield from (
        f"{key}: not with {other}; leave one of the two out" for other, found in without.items() if found
    )


def _bases(config: RunConfig, method: Method) -> Iterator[str]:
    init, values = config.method.init, "method.init.singular_values"
    has_core = method.has_core and method.draw is None
    if init.frame != "singular" and not has_core:
        able = able_names(lambda m: m.has_core and m.draw is None)
        yield f"method.init.frame: {method.name} has no core over bases; leave it out, or take one of {able}"
    if init.ranks == "spectrum":
        yield from _ranks(config, method)
    if not init.singular_values:
        return
    if not has_core or method.bases != "init" or method.experts is not None:
        able = able_names(lambda m: m.has_core and m.bases == "init" and m.experts is None)
        yield f"{values}: {method.name} has bases of its own making; leave it out, or take one of {able}"
    elif init.kind != "weights":
        yield f"{values}: of W0's, so with method.init.kind: weights alone; set that, or leave it out"


def _ranks(config: RunConfig, method: Method) -> Iterator[str]:
    """What has no singular values of an update, or could not take other ranks later."""
    init, key = config.method.init, "method.init.ranks: spectrum"
    if not chooses_ranks(method):
        able = able_names(chooses_ranks)
        yield f"{key}: {method.name} has no core over bases of gradients; leave it out, or take one of {able}"
    elif init.kind != "gradient":
        yield f"{key}: of the estimated first update, so with method.init.kind: gradient alone; set that"
    elif init.rule == "moments":
        yield f"{key}: moments of gradients are no update and have R0 = 0; take method.init.rule: sign or raw"
    if init.private:
        yield (
            f"{key}: with method.init.private the noise's singular values would choose; leave it out, or "
            "take public rows (method.init.public)"
        )
    if refreshes := config.method.refreshes:
        yield f"{key}: ranks are chosen once, before the first round; leave it or {refreshes} out"


def chooses_ranks(method: Method) -> bool:
    """Whether layers may have ranks from the singular values of their first update."""
    return method.has_core and method.draw is None and method.bases == "init" and method.experts is None
