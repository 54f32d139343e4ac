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
