"""The method that a config names, with the options that it sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

from pydantic import create_model

from fedsb.config.base import Section, checked
from fedsb.config.run_config import RunConfig
from fedsb.errors import InputError
from fedsb.methods import METHODS, Method, by_name


def method_of(config: RunConfig) -> Method:
    """The method value the config names.

    Raises:
        InputError: the method, or an option of it, is unknown, or an option has a wrong value.
    """
    method, options = by_name(config.method.name), config.method.options
    if config.method.personal and method.personal:  # else `check_settings` refuses it
        method = method.with_personal_cores()
    if method.experts is not None and (experts := config.method.experts) is not None:
        method = method.experts(hard_rounds(config), experts.train, gated=experts.route != "request")
    if not options:
        return method
    if method.options is None:
        raise InputError(f"method.options: {method.name} has none; leave them out")
    section = checked(_section(method.options), options, method.name, under="method.options")
    made: Method = method.options(**dict(section))
    return made


def hard_rounds(config: RunConfig) -> int:
    """The rounds of a mixture in which each example trains its own expert alone."""
    experts, rounds = config.method.experts, config.federation.rounds
    assert experts is not None
    if experts.folders is not None:
        return 0
    if experts.route == "request":
        return rounds
    return max(1, rounds - 2) if experts.hard_rounds is None else experts.hard_rounds


def gate_after(config: RunConfig) -> int:
    """The round after which a mixture's gate is made; 0: before the first.

    A gate over the frozen base's states needs to know no more than whose rows are whose.
    """
    experts = config.method.experts
    assert experts is not None
    if experts.route == "request":
        return experts.warmup_rounds if experts.count else 0
    return hard_rounds(config)


def able_names(able: Callable[[Method], bool]) -> str:
    """The methods that can do this, for a message."""
    return ", ".join(method.name for method in METHODS.all() if able(method))


@cache
def _section(options: Callable[..., Method]) -> type[Section]:
    """The keywords of this function as a section of a config."""
    keywords = signature(options, eval_str=True).parameters.values()
    fields: dict[str, Any] = {word.name: (word.annotation, word.default) for word in keywords}
    return create_model("Options", __base__=Section, **fields)
