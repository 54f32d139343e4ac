"""Which options of a command do not go together: one that would have no effect is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsb.cli.common import refuse_unused
from fedsb.common.dotted import flat
from fedsb.config import RunConfig
from fedsb.config.yaml_file import override
from fedsb.errors import InputError

if TYPE_CHECKING:
    from fedsb.compare.config import CompareConfig

DTYPES = ("float32", "bfloat16", "float16")
SCORED = ("seed", "model", "task", "data", "evaluation", "training.max_length")
"""Keys and sections that a score depends on."""
NOT_SCORED = ("model.check_memory", "evaluation.every")
"""But not these."""


def check_export(
    form: str,
    *,
    rank: int | None,
    server: str | None,
    dtype: str | None,
    expert: str | None,
    client: str | None,
) -> None:
    """Refuse what `fedsb export` cannot do.

    Raises:
        InputError: names the option.
    """
    if form not in ("lora", "merged", "experts"):
        raise InputError(f"--format: expected lora, merged or experts, found {form!r}")
    if form == "merged":
        refuse_unused({"--rank": rank, "--for": server}, "it is about adapters, --format lora")
    else:
        refuse_unused({"--dtype": dtype}, "an adapter is float32; it is about --format merged")
    if form == "experts":
        refuse_unused({"--expert": expert, "--client": client}, "--format experts writes all experts")
    if server not in (None, "vllm"):
        raise InputError(f"--for: expected vllm, found {server!r}; leave it out for any other")
    if dtype not in (None, *DTYPES):
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")


def check_run_overrides(overrides: Sequence[str]) -> None:
    """Refuse settings of a comparison, which one run has none of.

    Raises:
        InputError: names the key.
    """
    of_comparison = {f"-s {key}": True for key in flat(override({}, overrides)) if _is_under(key, "compare")}
    refuse_unused(of_comparison, "it is for fedsb compare")


def check_compare_overrides(overrides: Sequence[str], arms: Sequence[str], settings: CompareConfig) -> None:
    """Refuse keys that every arm of a comparison has another value of.

    Raises:
        InputError: names the key.
    """
    from fedsb.methods import METHODS

    keys = flat(override({}, overrides))
    refuse_unused({"-s seed": keys.get("seed")}, "--seeds names those of all arms")
    if all(arm in METHODS.names() for arm in arms):
        refuse_unused({"-s method.name": keys.get("method.name")}, "--methods names those of all arms")
    grids = settings.learning_rates
    if all(arm in grids or "default" in grids for arm in arms):
        rate = {"-s training.learning_rate": keys.get("training.learning_rate")}
        refuse_unused(rate, "compare.learning_rates names those of all arms")


def evaluation_config(run: Path | None, file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """What `fedsb evaluate` scores on: the file's config, else the run's own. The model's section is that of
    the run, if there is one, with what the overrides say of it.

    Raises:
        InputError: an override has no effect on scores, or as `RunConfig.from_yaml`.
    """
    from fedsb.runner.moved_base import with_base

    run_config = None if run is None else run / "config.yaml"
    config = RunConfig.from_yaml(file or run_config or Path(), overrides)
    keys = flat(override({}, overrides))
    if unused := next((key for key in keys if not _is_scored(key)), None):
        raise InputError(f"-s {unused}: has no effect on scores; leave it out")
    if run_config is None:
        refuse_unused({"-s model.path": keys.get("model.path")}, "the model is the one that --model names")
        return config
    of_model = [text for text in overrides if text.partition("=")[0].split(".")[0] == "model"]
    model = with_base(RunConfig.from_yaml(run_config, of_model), None, "-s model.path=PATH").model
    return config.model_copy(update={"model": model})


def _is_scored(key: str) -> bool:
    return any(_is_under(key, name) for name in SCORED) and not any(
        _is_under(key, name) for name in NOT_SCORED
    )


def _is_under(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")
