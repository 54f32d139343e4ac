"""A run's base model, which may lie elsewhere than when the run began: the same weights, by their digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from fedsb.common.files import read_json
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models.digest import base_digest
from fedsb.models.head import head_parameters
from fedsb.runner.checkpoint import STATE


def with_base(config: RunConfig, base: str | None, option: str) -> RunConfig:
    """The run's config, with its base at `base` if given.

    Raises:
        InputError: no base is given and its folder is there no more; the message names `option`.
    """
    path = config.model.path
    if base is None and Path(path).is_absolute() and not Path(path).exists():
        raise InputError(
            f"the run's base model was in {path} and is not there any more; where it is now: {option}"
        )
    model = config.model.model_copy(update={"path": path if base is None else base})
    return config.model_copy(update={"model": model})


def check_same_base(run: Path, config: RunConfig, model: nn.Module) -> None:
    """Refuse another base than the run was started on, as far as its checkpoint is there to tell.

    Raises:
        InputError: a weight differs, of an adapted layer or any other.
    """
    file = run / "checkpoint" / STATE
    if not file.is_file():
        return
    began: Mapping[str, object] = read_json(file).get("started_on") or {}
    before = RunConfig.from_yaml(run / "config.yaml").model
    comparable = before.dtype == config.model.dtype and not (before.load_in_4bit or config.model.load_in_4bit)
    digest = began.get("base")
    if not comparable or digest is None:
        return
    head = head_parameters(model) if config.task.classifies else {}
    if base_digest(model, head) != digest:
        raise InputError(
            f"{config.model.path}: the adapter of {run} was trained on other weights; name the base model "
            "that the run was started on"
        )
