"""Score a model, with or without an adapter, on a config's task and test data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from fedsb.adapter_folder import check_fits
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models import load_base, load_tokenizer, pick_device
from fedsb.prepare import make_task, read_splits
from fedsb.progress import Progress, Silent
from fedsb.tasks import Task


def evaluate(
    config: RunConfig, *, model: str, adapter: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """{"metrics": ..., "examples": ...} of `model` (hub id or folder), with the PEFT adapter if given.

    Raises:
        InputError: model, adapter, data or columns are wrong.
    """
    progress = progress or Silent()
    rows, test = read_splits(config)
    tokenizer = load_tokenizer(model)
    task = make_task(config, tokenizer, rows)
    examples = task.encode(test, config.data.test)
    loaded = load_with_adapter(config, model, tokenizer, task, adapter)
    metrics = task.evaluate(
        loaded,
        examples,
        batch_size=config.evaluation.batch_size,
        generate=config.evaluation.generate,
        progress=progress.evaluating,
    )
    return {"metrics": metrics, "examples": len(examples)}


def load_with_adapter(
    config: RunConfig, model: str, tokenizer: Any, task: Task, adapter: Path | None
) -> nn.Module:
    """The model in eval mode, the adapter put on by peft."""
    base = load_base(
        model,
        tokenizer=tokenizer,
        num_labels=task.num_labels,
        label_names=task.label_names,
        dtype=config.model.dtype,
        load_in_4bit=config.model.load_in_4bit,
        device=pick_device(config.model.device),
        device_map=config.model.device_map,
        seed=config.seed,
    )
    if adapter is None:
        return base
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"--adapter: {adapter} has no adapter_config.json; expected a PEFT LoRA folder")
    if json.loads((adapter / "adapter_config.json").read_text()).get("peft_type") == "LORA":
        check_fits(adapter, base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers, not ours to mend
            return PeftModel.from_pretrained(base, adapter).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--adapter: {adapter} cannot be put on {model}: {first}") from error
