"""A model's config.json, looked at before a library builds anything from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsb.common.files import read_json
from fedsb.errors import InputError

CONFIG = "config.json"
LARGEST = 1 << 24
"""Any whole number but those below: sizes of vocabularies, layers, positions."""
LIMITS = {
    r"(layers?|blocks?|depths?|groups?|stages?)$": 1000,
    r"experts(?!.*size)": 4096,
    r"labels$": 1 << 20,
}
"""Pattern of a key -> the largest number there."""
BUILDS_NOTHING = re.compile(r"theta|base|scal|factor|length|window|token|seed|param|flop|version")
MOST_EXPERTS = 1 << 18
"""In all layers together."""
LONGEST = 1 << 24
"""Largest file, in bytes."""


def check_config(path: str) -> None:
    """Refuse a config.json of a size that no model has, or that names code outside transformers.

    Raises:
        InputError: the key, the number found and the largest that is accepted.
    """
    most = dict.fromkeys(LIMITS, 1)
    for key, value in _entries(_read(path)):
        if isinstance(value, str) and "implementation" in key and "/" in value:
            raise InputError(
                f"model.path: {CONFIG} of {path!r} names code of its own as {key}, and none is run; remove it"
            )
        if isinstance(value, int | float) and not BUILDS_NOTHING.search(key):
            pattern = next((pattern for pattern in LIMITS if re.search(pattern, key)), "")
            _check_number(path, key, value, LIMITS.get(pattern, LARGEST))
            most[pattern] = max(most.get(pattern, 1), int(value))
    layers, experts, *_ = most.values()
    if layers * experts > MOST_EXPERTS:
        raise InputError(
            f"model.path: {CONFIG} of {path!r} has {layers} layers of {experts} experts; at most "
            f"{MOST_EXPERTS:,} in all are accepted"
        )


def _read(path: str) -> dict[str, Any]:
    """A folder's config.json; of an id on the hub what transformers fetches, nothing where it cannot."""
    if Path(path).exists():
        file = Path(path) / CONFIG
        if file.is_file() and file.stat().st_size > LONGEST:
            raise InputError(f"model.path: {file} has more than {LONGEST:,} bytes; restore it")
        return read_json(file)
    from transformers import PretrainedConfig

    with suppress(Exception):  # loading the model says what is wrong
        return dict(PretrainedConfig.get_config_dict(path)[0])
    return {}


def stored_config(path: str) -> Any | None:
    """The config of a folder or id as transformers reads it; None where it cannot: loading says why."""
    file = Path(path) / CONFIG
    if not file.is_file():
        return _parsed(path)
    stat = file.stat()
    return deepcopy(_of_folder(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino)))


@lru_cache(maxsize=16)
def _of_folder(path: str, changed: tuple[int, ...]) -> Any | None:
    """A run asks for it many times; read again once the file was changed."""
    return _parsed(path)


def _parsed(path: str) -> Any | None:
    from transformers import AutoConfig

    with suppress(Exception):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    return None


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with the last name on the way to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _entries(inner, str(name).lower())
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, key)
    else:
        yield key, value


def _check_number(path: str, key: str, value: float, largest: int) -> None:
    if not abs(value) <= largest:
        raise InputError(
            f"model.path: {CONFIG} of {path!r} has {key[:80]}: {str(value)[:40]}; at most {largest:,} is "
            "accepted. No model is of this size: restore the file"
        )
