"""`training.max_length: auto` as a number: chosen by the training examples, or fixed where they may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models.head import IMAGE
from fedsb.models.limits import positions_of
from fedsb.models.shapes import build_on_meta
from fedsb.tasks import Example
from fedsb.tasks.cuts import PERCENTILES

FIXED = 128
"""The length where no row may choose it, and up to which nothing is cut."""
NO_LIMIT = 1 << 20
"""Tokens of an example of a model that has room for any number."""
LOOKED_AT = 4096
"""Tokens that an example keeps while lengths are looked at: they are counted before anything is cut."""
STEP = 8


class Length(NamedTuple):
    """A number of tokens, and what to say of it; `said` is empty where the config gives the number."""

    tokens: int
    said: str = ""


def has_lengths(config: RunConfig) -> bool:
    """Whether examples have a length at all; images have none."""
    return config.task.model_class != IMAGE


def limit_of(config: RunConfig) -> int:
    """The most tokens that the base model has positions for, by its config.json."""
    try:
        positions = positions_of(build_on_meta(config.model.path))
    except InputError:  # the model itself is refused later, with the reason
        return FIXED
    return NO_LIMIT if positions is None else positions.usable


def fixed_length(config: RunConfig) -> Length:
    """The length of a run whose rows must not choose it, over the network or with privacy, or have none.

    A length made of rows tells of them: the server would see it, and noise does not cover it.
    """
    if config.training.max_length != "auto":
        return Length(config.training.max_length)
    if not has_lengths(config):
        return Length(FIXED)
    tokens = min(FIXED, limit_of(config))
    said = f"training.max_length: {tokens}, since no row may choose it; set it if rows need more"
    return Length(tokens, said)


def chosen_length(examples: Sequence[Example], limit: int) -> Length:
    """The length for these training examples, of which each says how long it was before it was cut.

    All fit, if FIXED tokens will do; else 99 of 100 do. In steps of 8, within the limit.
    """
    if not examples or not all("tokens" in example for example in examples):
        tokens = min(FIXED, limit)
        return Length(tokens, f"training.max_length: {tokens}, since no example of this task says its length")
    lengths = [example["tokens"][0] for example in examples]
    often, longest = np.percentile(lengths, [PERCENTILES["p99"], 100], method="inverted_cdf")
    needed = longest if longest <= FIXED else max(often, FIXED)
    tokens = min(-(-int(needed) // STEP) * STEP, limit)
    share = "all" if longest <= tokens else f"{np.mean(np.asarray(lengths) <= tokens):.1%}"
    return Length(tokens, f"training.max_length: {tokens}, chosen by the rows: {share} of them fit")


def with_length(config: RunConfig, tokens: int) -> RunConfig:
    """The config with this number in place of auto."""
    return config.model_copy(update={"training": config.training.model_copy(update={"max_length": tokens})})
