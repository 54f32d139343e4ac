"""A checked part of a config, and its faults in words: `key: expected ..., found ...`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsb.errors import InputError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MOST_FAULTS = 20
"""Shown of one config."""


class Section(BaseModel):
    """Part of a config: unknown keys are errors; values are frozen, finite, and if whole within 64 bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _fits_into_64_bits(cls, value: Any) -> Any:
        many = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for number in many:
            if isinstance(number, int) and abs(number) >= 1 << 63:
                bits = number.bit_length()
                raise ValueError(f"expected less than 2^63, found a whole number of {bits} bits")
        return value


S = TypeVar("S", bound=Section)


def checked(kind: type[S], values: Mapping[str, Any], source: str, *, under: str = "") -> S:
    """The section with these values; `under`: its own key, where it lies in a config.

    Raises:
        InputError: a key or a value is wrong; one line per fault.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        faults = "\n  ".join(_explain(e, kind, under) for e in error.errors()[:MOST_FAULTS])
        raise InputError(f"{source}: {error.error_count()} wrong\n  {faults}") from None
    except RecursionError:
        raise InputError(f"{source}: more lists and mappings within each other than a config has") from None


def _explain(error: Any, kind: type[Section], under: str) -> str:
    """One fault as `key: expected ..., found ...`."""
    location = [str(part) for part in error["loc"]]
    below = [part for part in location if part not in _UNION_TAGS]
    key = ".".join([under, *below] if under else below)[:200] or "config"
    if error["type"] == "extra_forbidden":
        close = get_close_matches(location[-1], _all_keys(kind), n=2)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        return f"{key}: unknown key.{hint}"
    if error["type"] == "missing":
        return f"{key}: this key is needed and missing"
    if error["type"] == "value_error":  # one of our own, which says what it found
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    return f"{key}: {error['msg']}, found {_shown(error['input'])}"


def _shown(value: Any) -> str:
    """The value as Python writes it, cut to a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a whole number of more than 4,300 digits has no text
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


_UNION_TAGS = {"iid", "dirichlet", "by-column", "shards", "sequential", "stacked", "auto", "ray"}


def _all_keys(section: type[Section]) -> set[str]:
    """Keys of the section and of all sections in it."""
    fields = section.model_fields
    inner = {s for field in fields.values() for s in _sections(field.annotation)}
    return set(fields).union(*map(_all_keys, inner))


def _sections(annotation: Any) -> set[type[Section]]:
    """Section types that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}
    return set().union(*map(_sections, get_args(annotation)))
