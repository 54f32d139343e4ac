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
    if not options:
        return method
    if method.options is None:
        raise InputError(f"method.options: {method.name} has none; leave them out")
    section = checked(_section(method.options), options, method.name, under="method.options")
    made: Method = method.options(**dict(section))
    return made


def able_names(able: Callable[[Method], bool]) -> str:
    """The methods that can do this, for a message."""
    return ", ".join(method.name for method in METHODS.all() if able(method))


@cache
def _section(options: Callable[..., Method]) -> type[Section]:
    """The keywords of this function as a section of a config."""
    keywords = signature(options, eval_str=True).parameters.values()
    fields: dict[str, Any] = {word.name: (word.annotation, word.default) for word in keywords}
    return create_model("Options", __base__=Section, **fields)
