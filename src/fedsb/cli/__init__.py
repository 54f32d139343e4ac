"""Commands: parse, call, print."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsb.cli.app import main as main

_HOME = {"main": "app"}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsb.cli' has no attribute {name!r}")
    return getattr(import_module(f"fedsb.cli.{_HOME[name]}"), name)
