"""A program's functions as each run of a comparison calls them: with the run's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedsb.runner.hooks import Hooks, Step


def named(hooks: Hooks, name: str) -> Mapping[str, Any]:
    """Arguments of `fedsb.run`: `on_round` gets the run's name as `run` of its line, `on_step` as its first
    argument."""
    arguments: dict[str, Any] = {"metrics": hooks.metrics} if hooks.metrics else {}
    if hooks.on_round is not None:
        arguments["on_round"] = _with_run(hooks.on_round, name)
    if hooks.on_step is not None:
        arguments["on_step"] = _before_step(hooks.on_step, name)
    return arguments


def _with_run(on_round: Callable[[dict[str, Any]], object], name: str) -> Callable[[dict[str, Any]], object]:
    return lambda record: on_round({"run": name, **record})


def _before_step(on_step: Callable[..., object], name: str) -> Callable[[Step], object]:
    return lambda step: on_step(name, step)
