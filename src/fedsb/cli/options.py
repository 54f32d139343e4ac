"""Which options of a command do not go together: one that would have no effect is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsb.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


def refuse_unused(options: Mapping[str, Any], reason: str) -> None:
    """Refuse the first of these options that was given.

    Raises:
        InputError: names it, and why it has no effect.
    """
    given = next((name for name, value in options.items() if value not in (None, [])), None)
    if given is not None:
        raise InputError(f"{given}: has no effect here, {reason}; leave it out")


def check_export(form: str, *, rank: int | None, server: str | None, dtype: str | None) -> None:
    """Refuse what `fedsb export` cannot do.

    Raises:
        InputError: names the option.
    """
    if form not in ("lora", "merged"):
        raise InputError(f"--format: expected lora or merged, found {form!r}")
    if form == "merged":
        refuse_unused({"--rank": rank, "--for": server}, "it is about adapters, --format lora")
    else:
        refuse_unused({"--dtype": dtype}, "an adapter is float32; it is about --format merged")
    if server not in (None, "vllm"):
        raise InputError(f"--for: expected vllm, found {server!r}; leave it out for any other")
    if dtype not in (None, *DTYPES):
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
