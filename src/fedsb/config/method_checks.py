"""Which settings a method cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from fedsb.config.robust_checks import robust_faults
from fedsb.config.run_config import RunConfig
from fedsb.methods import ALL, Method, by_name


def method_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with the settings of the config's method.

    Raises:
        InputError: the method is unknown.
    """
    method = by_name(config.method.name)
    for part in (_heads, _only_for_some, _mixed, robust_faults):
        yield from part(config, method)


def _heads(config: RunConfig, method: Method) -> Iterator[str]:
    heads, rank = config.method.heads, config.method.rank
    if heads is None:
        return
    if heads > 1 and not method.has_core:
        yield (
            f"method.heads: {method.name} has no core to split, found {heads}; leave it out, or take one of "
            f"{_names(m for m in ALL if m.has_core)}"
        )
    if rank % heads:
        fits = [n for n in range(1, rank + 1) if rank % n == 0]
        yield (
            f"method.heads: expected a divisor of method.rank = {rank} ({', '.join(map(str, fits))}), "
            f"found {heads}"
        )


def _only_for_some(config: RunConfig, method: Method) -> Iterator[str]:
    wanted = config.method
    if wanted.refresh_every is not None and not (method.has_core and method.settle is None):
        yield f"method.refresh_every: only fed-sb and lora-xs start anew, found {method.name}; leave it out"
    if wanted.residual_rank is not None and method.name != "fedex-lora":
        yield f"method.residual_rank: only fedex-lora sends a residual, found {method.name}; leave it out"
    changes_base = wanted.refresh_every is not None or method.changes_base
    if changes_base and config.model.load_in_4bit:
        what = "method.refresh_every" if wanted.refresh_every else f"method.name: {method.name}"
        yield f"{what} changes base weights, which 4 bits cannot hold; set model.load_in_4bit: false"


def _mixed(config: RunConfig, method: Method) -> Iterator[str]:
    federation, wanted = config.federation, config.method
    heads = wanted.heads or method.heads
    yield from _per_client(
        "client_ranks", federation.client_ranks, federation.clients, wanted.rank, "method.rank"
    )
    yield from _per_client(
        "client_heads", federation.client_heads, federation.clients, heads, "the core's heads"
    )
    if federation.client_ranks and not method.mixed_ranks:
        able = _names(m for m in ALL if m.mixed_ranks)
        yield (
            f"federation.client_ranks: {method.name} needs one rank for all clients; leave client_ranks out, "
            f"or take one of {able}"
        )
    if federation.client_heads and not (method.has_core and heads > 1):
        yield "federation.client_heads: there is one head; set method.heads, with fed-sb, lora-xs or ravan"
    if federation.client_heads and config.training.weight_decay:
        yield (
            "federation.client_heads: training.weight_decay would shrink the heads a client does not train; "
            "set it to 0"
        )
    for key in ("privacy", "method.refresh_every", "model.device_map") if federation.processes > 1 else ():
        if _value(config, key) is not None:
            yield f"federation.processes: with {key} clients train in one process; leave one of the two out"
    if federation.client_ranks and wanted.refresh_every:
        yield (
            "method.refresh_every: with federation.client_ranks small clients cannot fold the whole core; "
            "leave one of the two out"
        )


def _value(config: RunConfig, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _per_client(key: str, found: list[int] | None, clients: int, largest: int, limit: str) -> Iterator[str]:
    if found is None:
        return
    if len(found) != clients:
        yield (
            f"federation.{key}: expected {clients} numbers, one for each of federation.clients, "
            f"found {len(found)}"
        )
    if max(found, default=0) > largest:
        yield f"federation.{key}: expected numbers of at most {largest} ({limit}), found {max(found)}"


def _names(methods: Iterator[Method]) -> str:
    return ", ".join(method.name for method in methods)
