"""Which settings of the federated optimization do not go with the method or with each other."""

from __future__ import annotations

from collections.abc import Iterator

from fedsb.config.method import able_names, method_of
from fedsb.config.run_config import RunConfig
from fedsb.methods import Method
from fedsb.methods.averaging.control_variates import takes_control_variates


def optimization_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with them.

    Raises:
        InputError: the method, or an option of it, is unknown.
    """
    method = method_of(config)
    yield from _server(config, method)
    yield from _control_variates(config, method)


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
    if config.method.refresh_every is not None:
        yield "federation.server: momentum is over bases that method.refresh_every replaces; leave one out"


def _control_variates(config: RunConfig, method: Method) -> Iterator[str]:
    key, federation = "federation.control_variates", config.federation
    if not federation.control_variates:
        return
    if not takes_control_variates(method):
        yield (
            f"{key}: {method.name} does not send just what it trains in each step; leave them out, or take "
            f"one of {able_names(takes_control_variates)}"
        )
    if config.training.optimizer != "sgd":
        yield (
            f"{key}: they take a client's mean gradient from where its steps led, which AdamW's do not tell; "
            "set training.optimizer: sgd"
        )
    if config.privacy is not None:
        yield f"{key}: a client's own is made of its rows without noise; leave privacy or {key} out"
    without = {
        "federation.robust": federation.robust,
        "federation.client_ranks": federation.client_ranks,
        "federation.client_heads": federation.client_heads,
        "federation.processes": federation.processes > 1,
        "method.refresh_every": config.method.refresh_every,
        "evaluation.baselines": config.evaluation.baselines,
    }
    yield from (
        f"{key}: not with {other}; leave one of the two out" for other, set_ in without.items() if set_
    )
