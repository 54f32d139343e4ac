"""A finished run's model, loaded to be used: its base with its adapter, or with its mixture, which routes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedsb.adapter.attached import Attached
from fedsb.common.files import read_json
from fedsb.config import RunConfig
from fedsb.config.sections.task import OWN_SECTIONS, TaskSection
from fedsb.errors import InputError
from fedsb.models import load_preprocessor
from fedsb.models.mixture_folder import is_mixture, put_mixture_on
from fedsb.models.peft_folder import check_fits, put_on
from fedsb.runner.chosen_lora import model_folder
from fedsb.runner.moved_base import check_same_base, with_base
from fedsb.runner.prepare_data import task_of
from fedsb.runner.prepare_model import load_model
from fedsb.tasks import Task


@dataclass(frozen=True)
class FinishedModel:
    """A model with the task that it was trained for, and no data."""

    config: RunConfig
    tokenizer: Any
    task: Task
    model: nn.Module


def load_finished(run: Path, config: RunConfig) -> FinishedModel:
    """The model of a finished run.

    Args:
        config: the run's, perhaps with another model.device or the like.

    Raises:
        InputError: the run is not finished, its base is another now, or its task is another package's.
    """
    check_finished(run)
    names = read_json(run / "summary.json").get("label_names")
    config = config.model_copy(update={"task": _known(config, names)})
    tokenizer = load_preprocessor(config.model.path, config.task.model_class)
    task = task_of(config, tokenizer, [])
    model, _ = load_with_adapter(config, config.model.path, tokenizer, task, model_folder(run))
    return FinishedModel(config, tokenizer, task, model)


def check_finished(run: Path) -> None:
    """Refuse a folder without a finished run.

    Raises:
        InputError: names it.
    """
    if not (run / "summary.json").is_file():
        raise InputError(f"{run} holds no finished run (no summary.json)")


def _known(config: RunConfig, names: list[str] | None) -> TaskSection:
    """The task's section with the classes that the run found in its rows, which are not read again."""
    task = config.task
    if not isinstance(task, OWN_SECTIONS):
        raise InputError(f"task.kind: {task.kind} is another package's, which does not say what it predicts")
    return task.model_copy(update=task.found(names)) if task.classes_are_of_rows else task


def load_with_adapter(
    config: RunConfig, model: str, tokenizer: Any, task: Task, adapter: Path | None
) -> tuple[nn.Module, Attached | None]:
    """The model in eval mode, the adapter put on by peft; of a mixture what was put on besides."""
    base = load_model(config, model, tokenizer, task)
    if adapter is None:
        return base, None
    try:
        began_on = with_base(config, model, "")
        if is_mixture(adapter):
            check_same_base(adapter.parent, began_on, base)
            attached = put_mixture_on(base, adapter)
            return attached.model, attached
        if not (adapter / "adapter_config.json").is_file():
            raise InputError(
                f"{adapter} has no adapter_config.json; expected a PEFT LoRA folder or a mixture"
            )
        check_fits(adapter, base)
        check_same_base(adapter.parent, began_on, base)
        return put_on(base, adapter), None
    except InputError as error:
        raise InputError(f"--adapter: {error}") from None
