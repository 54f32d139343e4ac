"""Config files and `-s key.path=value` overrides, as nested mappings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsb.common.strict_json import Unreadable
from fedsb.common.strict_yaml import YAML_CHARACTERS, parse_yaml
from fedsb.errors import InputError

LEVELS = 20
"""Parts of a dotted key, at most."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested mappings.

    Raises:
        InputError: it cannot be read, is not YAML, is beyond all bounds of a config, or holds no keys.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = parse_yaml(file.read(YAML_CHARACTERS + 1))
    except OSError as error:
        raise InputError(f"{path}: cannot read this config: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid YAML: bytes that are not UTF-8; save it as UTF-8") from None
    except Unreadable as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys such as model:, task:, data:; found {type(values).__name__}")
    return values


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set `key.path=value` overrides, values read as YAML, in a nested mapping."""
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise InputError(f"-s {text[:200]}: expected key.path=value, e.g. -s method.rank=32")
        *parents, leaf = path.split(".")
        if len(parents) >= LEVELS:
            raise InputError(f"-s {path[:80]}...: a key of {len(parents) + 1} parts; there is none")
        target = values
        for key in parents:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[leaf] = _yaml_value(text, value)
    return values


def _yaml_value(text: str, value: str) -> Any:
    try:
        return parse_yaml(value)
    except Unreadable as error:
        raise InputError(
            f"-s {text[:200]}: {value[:200]!r} is not a YAML value; quote text that holds []{{}}:# ({error})"
        ) from None
