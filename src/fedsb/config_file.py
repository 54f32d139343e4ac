"""Config files and `-s key.path=value` overrides, as nested mappings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fedsb.errors import InputError


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested mappings.

    Raises:
        InputError: it cannot be read, is not YAML, or holds no keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read this config: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys such as model:, task:, data:; found {type(values).__name__}")
    return values


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set `key.path=value` overrides, values read as YAML, in a nested mapping."""
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise InputError(f"-s {text}: expected key.path=value, e.g. -s method.rank=32")
        *parents, leaf = path.split(".")
        target = values
        for key in parents:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[leaf] = _yaml_value(text, value)
    return values


def _yaml_value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(
            f"-s {text}: {value!r} is not a YAML value; quote text that holds []{{}}:#"
        ) from None
