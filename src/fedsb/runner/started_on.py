"""What a run was started on, and whether it is resumed on the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedsb.config.run_config import RunConfig
from fedsb.errors import InputError
from fedsb.models.digest import examples_digest
from fedsb.runner.continued import check_continues
from fedsb.runner.prepare_data import Data

PACKAGES = ("fedsb", "torch", "transformers", "peft", "safetensors", "tokenizers", "pillow", "numpy")
NAMES = {
    "train": "the training rows (data.train), or how the tokenizer in model.path reads them",
    "test": "the test rows (data.test), or how the tokenizer in model.path reads them",
    "public": "the public rows (method.init.public), or how the tokenizer in model.path reads them",
    "parts": "which client has which training rows, or how many",
    "base": "the weights of the base model (model.path)",
}


def started_on(config: RunConfig, data: Data, base: str | None) -> dict[str, Any]:
    """Digests of a run's inputs, as the checkpoint keeps them.

    Args:
        base: digest of the base's weights; None where they are elsewhere.
    """
    return {
        "config": config.model_dump(mode="json", exclude={"tracking"}),
        "versions": versions(),
        "train": examples_digest(data.train),
        "test": examples_digest(data.test),
        "parts": examples_digest({"indices": list(part)} for part in data.parts),
        "public": None if data.public is None else examples_digest(data.public),
        "base": base,
    }


@cache
def versions() -> Mapping[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def first_config(before: Mapping[str, Any]) -> RunConfig:
    """The config that the run was started with."""
    return RunConfig.from_dict(before["config"], source="the config in the checkpoint")


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig) -> str | None:
    """Refuse to resume on other inputs. A line about other versions, None where they are the same.

    Raises:
        InputError: names what differs, and shows nothing of it.
    """
    check_continues(first_config(before), config, "config.yaml is not the one that the run was started with")
    other = [name for key, name in NAMES.items() if before[key] != now[key]]
    if other:
        raise InputError(
            "--resume: the run was started on others than are here now:\n  "
            + "\n  ".join(other)
            + "\nBring back what was there, or start again with another --out"
        )
    return _other_versions(before["versions"], now["versions"])


def _other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    changed = [
        f"{name} {before.get(name)} -> {now.get(name)}" for name in now if before.get(name) != now[name]
    ]
    return f"resumed with other versions than at the start: {', '.join(changed)}" if changed else None
