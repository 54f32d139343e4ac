"""What a config with `privacy` or secure aggregation has where it says nothing: settings that look at no
private row, or at sums alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PLAIN = {
    "method.init.kind": "gradient",
    "method.init.head_warmup": "3 rounds",
    "federation.weighting": "examples",
}
"""The defaults without privacy, in words, of the keys that have others with it."""


def with_private_defaults(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a config, with the defaults of privacy where it is asked for and they are not set. What
    is set stays, and is refused by `check_settings` where it does not go with privacy."""
    privacy = values.get("privacy")
    if privacy is None:
        return values
    method, federation = values.get("method", {}), values.get("federation", {})
    init = method.get("init", {}) if isinstance(method, Mapping) else None
    if isinstance(init, Mapping):
        values = {**values, "method": {**method, "init": _start(init)}}
    by_client = isinstance(privacy, Mapping) and privacy.get("unit") == "client"
    if by_client and isinstance(federation, Mapping):
        values = {**values, "federation": {"weighting": "uniform", **federation}}
    return values


def with_secure_defaults(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a config, with a start that is a sum where secure aggregation is asked for and nothing
    else is set."""
    method, federation = values.get("method", {}), values.get("federation", {})
    init = method.get("init", {}) if isinstance(method, Mapping) else None
    secure = isinstance(federation, Mapping) and federation.get("secure_aggregation") is not None
    if not (secure and isinstance(init, Mapping)):
        return values
    return {**values, "method": {**method, "init": {"upload": "sketch", **init}}}


def _start(init: Mapping[str, Any]) -> Mapping[str, Any]:
    """Public rows may make bases and warm up a head; noised sums make bases alone."""
    if init.get("public"):
        return init
    return {"head_warmup": None, **({} if init.get("private") else {"kind": "weights"}), **init}


def notes_on_defaults(config: Any) -> Iterator[str]:
    """A line about what a private run has in place of the defaults without privacy."""
    privacy, init = config.privacy, config.method.init
    if privacy is None:
        return
    now = {
        "method.init.kind": init.kind,
        "method.init.head_warmup": "null" if init.head_warmup is None else PLAIN["method.init.head_warmup"],
        "federation.weighting": config.federation.weighting,
    }
    other = [f"{key}: {value} (without: {PLAIN[key]})" for key, value in now.items() if value != PLAIN[key]]
    if other:
        yield f"with privacy, since no unprotected row may decide: {', '.join(other)}"
