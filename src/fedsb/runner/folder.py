"""The run folder as in the contract: what is written when, and what may not be overwritten."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsb.adapter.attached import Attached, fold
from fedsb.common.files import LOCK, alone, read_json, remove_parts, write_json, write_jsonl, write_text
from fedsb.config.run_config import RunConfig
from fedsb.config.sections.task import AnswerSection
from fedsb.errors import InputError
from fedsb.federation.start.refresh import FOLDED
from fedsb.federation.traffic import Traffic, total_bytes
from fedsb.methods import Method
from fedsb.models.head import TASK_TYPES
from fedsb.models.peft_folder import write_adapter
from fedsb.models.public_name import public_name
from fedsb.runner.checkpoint import STATE, RunState
from fedsb.runner.continued import as_chosen, check_continues
from fedsb.runner.finished_mixture import finish_mixture
from fedsb.runner.given import GIVEN
from fedsb.runner.prepare_data import Data, cut_record, partition_record
from fedsb.runner.prepare_model import BaseModel, own_ranks
from fedsb.runner.prepared import Prepared
from fedsb.runner.privacy_summary import privacy_summary
from fedsb.runner.private_state import PRIVATE, write_privately
from fedsb.runner.site_scores import sites_summary
from fedsb.runner.split_record import write_split
from fedsb.runner.started_on import versions
from fedsb.tasks import generate_texts

MAY_BE_THERE = ("data", GIVEN, LOCK)
"""In a folder that a run may begin in: the quickstart's data, what a program gave as objects, and what a
start killed at once leaves, such as `.config.yaml.*.part`."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside the block no other process works on the run or comparison in this folder. Folders that were made
    for the lock are gone again where nothing was written.

    Raises:
        InputError: the folder cannot be made or written.
        RunFailed: another process works on it.
    """
    check_place(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with alone(folder / LOCK, str(folder)):
            yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


def check_free(folder: Path, config: RunConfig, *, resume: bool, deployed: bool = False) -> None:
    """Refuse a folder that would be overwritten, or that holds a run of another config.

    Args:
        deployed: clients are on other machines.

    Raises:
        InputError: with the cure.
    """
    check_place(folder)
    config_file = folder / "config.yaml"
    if config_file.exists():
        if not resume:
            raise InputError(
                f"--out: {folder} already holds a run; add --resume to resume it, or name another"
            )
        if (folder / "metrics.jsonl").exists() and not (folder / "checkpoint" / STATE).exists():
            raise InputError(
                f"--resume: {folder} has rounds and no checkpoint/{STATE}, so nobody knows what they were "
                "of; restore it from a copy, or start again with another --out"
            )
        before, problem = RunConfig.from_yaml(config_file), f"{folder} was started with another config"
        check_continues(before, config, problem, deployed=deployed)
    elif resume:
        raise InputError(f"--resume: {folder} holds no run (no config.yaml); leave --resume out to start one")
    else:
        check_new(folder)


def as_begun(folder: Path, config: RunConfig) -> RunConfig:
    """The config of a run that is resumed, with what was chosen as it began."""
    return as_chosen(RunConfig.from_yaml(folder / "config.yaml"), config)


def check_new(folder: Path) -> None:
    """Refuse a place where no new run can begin.

    Raises:
        InputError: it cannot be made or written, or holds something else than what a run may find there.
    """
    check_place(folder)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if PRIVATE in names and all(path.name == GIVEN for path in (folder / PRIVATE).glob("*")):
        names.remove(PRIVATE)
    if not all(name in MAY_BE_THERE or fnmatch(name, ".config.yaml.*.part") for name in names):
        raise InputError(f"--out: {folder} is not empty and holds no run; name a new folder")


def check_place(folder: Path) -> None:
    """Refuse a folder that could not be made or written.

    Raises:
        InputError: a part of its path is a file, or not open to writing.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        what = f"{folder} is a file" if nearest == folder else f"{folder}: {nearest} is a file"
        raise InputError(f"--out: {what}; name a folder")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"--out: {folder}: may not write into {nearest}; name another folder")


def open_folder(folder: Path, config: RunConfig, data: Data) -> None:
    """Create the folder with the resolved config and the partition; who holds which example stays apart where
    privacy is on. What a kill left half written goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for inner in (folder, folder / "checkpoint", folder / "adapter"):
        remove_parts(inner)
    write_text(folder / "config.yaml", config.to_yaml())
    write_split(folder, config, data.split)
    write_json(folder / "partition.json", partition_record(config, data))
    if config.privacy is not None and data.train:
        whole = json.dumps(
            {"clients": dict(enumerate(data.parts)), "tests": dict(enumerate(data.client_tests))}
        )
        write_privately(folder / PRIVATE / "partition.json", whole.encode())


def open_again(folder: Path) -> None:
    """A finished run is one no more: rounds are to follow. Its scores were of another adapter, too."""
    for name in ("summary.json", "evaluation/scores.json"):
        (folder / name).unlink(missing_ok=True)


def write_progress(folder: Path, saved: RunState) -> None:
    """metrics.jsonl and ledger.json up to the last finished round."""
    write_jsonl(folder / "metrics.jsonl", saved.metrics)
    entries = [asdict(entry) for entry in saved.traffic]
    write_json(folder / "ledger.json", {"calibration": saved.draw, "entries": entries})


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run that left everything it leaves, else None."""
    from fedsb.report.write import is_live

    page = folder / "report.html"
    if not (folder / "summary.json").is_file() or not page.is_file() or is_live(page):
        return None
    return read_json(folder / "summary.json")


def finish(prepared: Prepared, attached: Attached, saved: RunState, clock: float) -> dict[str, Any]:
    """Write samples, adapter/, summary.json and report.html; summary.json marks the run as finished."""
    from fedsb.report import write_report

    folder, config, data, base = prepared.folder, prepared.config, prepared.data, prepared.base
    write_samples(folder, config, data, base.model)
    write_progress(folder, saved)
    write_model(folder / "adapter", config, base, attached, prepared.layers_digest)
    mixture = finish_mixture(prepared, attached, saved)
    saved.seconds = time.monotonic() - clock
    summary = _summary(prepared, saved) | ({"mixture": mixture} if mixture else {})
    if (sites := sites_summary(prepared, saved)) is not None:
        summary["sites"] = sites
    write_json(folder / "summary.json", summary)
    write_report([folder], folder / "report.html")
    return summary


def write_model(
    folder: Path, config: RunConfig, base: BaseModel, attached: Attached, base_weights: str | None
) -> None:
    """What is in the model now, adapter and head, as a PEFT LoRA folder.

    base_weights: `layer_digest` of the adapted layers; None where nobody knows.
    """
    write_adapter(
        folder,
        fold(attached),
        base_model=public_name(config.model.path),
        base_weights=base_weights,
        task_type=TASK_TYPES[config.task.model_class],
        fan_in_fan_out=any(type(layer.base).__name__ == "Conv1D" for layer in attached.layers.values()),
        head=base.task_head,
    )


def _summary(prepared: Prepared, saved: RunState) -> dict[str, Any]:
    """What summary.json holds."""
    config, method, task = prepared.config, prepared.method, prepared.data.task
    traffic, evaluated = saved.traffic, [m["eval"] for m in saved.metrics if m["eval"]] or [{}]
    kind = _start_kind(config, method)
    return {
        "method": method.name,
        "exact": method.exact,
        "primary_metric": task.primary_metric,
        "higher_is_better": task.higher_is_better,
        "base": evaluated[0],
        "final": evaluated[-1],
        "num_test_examples": len(prepared.data.test),
        "label_names": list(task.label_names) if task.label_names else None,
        "rounds": saved.state.round,
        "communication": {
            "init_bytes": total_bytes(traffic, once=True),
            "upload_bytes": total_bytes(traffic, direction="up", once=False),
            "download_bytes": total_bytes(traffic, direction="down", once=False),
            "upload_parameters_per_client_per_round": _mean_upload(saved),
            "one_time": [asdict(entry) for entry in traffic if entry.round == 0],
        },
        "initialization": {
            "kind": kind,
            "rule": _rule(config) if kind == "gradient" else None,
            "samples": {str(client): indices for client, indices in saved.draw.items()},
            **_refreshes(config, traffic),
            **({"ranks": ranks} if (ranks := own_ranks(config, saved.factors)) else {}),
        },
        "tokens": cut_record(config, prepared.data, shown=True),
        "privacy": _private_facts(prepared, saved),
        "seconds": round(saved.seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
    }


def _private_facts(prepared: Prepared, saved: RunState) -> dict[str, Any] | None:
    privacy, data = prepared.privacy, prepared.data
    if privacy is None:
        return None
    return privacy_summary(privacy, saved.metrics, experts=bool(data.experts), owner_like=data.owner_like)


def _refreshes(config: RunConfig, traffic: Iterable[Traffic]) -> dict[str, list[int]]:
    """The rounds after which bases were replaced, where the config asks for that."""
    rounds = [entry.round for entry in traffic if entry.what == FOLDED]
    return {"refreshed_after": rounds} if config.method.refreshes else {}


def _start_kind(config: RunConfig, method: Method) -> str:
    """Where the factors came from."""
    if config.method.init.from_run:
        return "an earlier run"
    if method.draw:
        return "lora"
    return config.method.init.kind if method.bases == "init" else method.bases


def _rule(config: RunConfig) -> str:
    """How the update was estimated."""
    init = config.method.init
    if init.private:
        return "clipped and noised sums"
    return f"{init.rule}, of public examples" if init.public else init.rule


def _mean_upload(saved: RunState) -> int:
    """Numbers in one upload, on average where clients or rounds differ."""
    rounds = [m for m in saved.metrics if m["clients"]]
    answers = sum(len(m["clients"]) + len(m["rejected"]) for m in rounds)
    return round(sum(m["upload_parameters"] for m in rounds) / answers) if answers else 0


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, plus the largest allocation on a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return host + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


# A few greedy answers of the final model, for people to read: samples.jsonl in the run folder.


MOST_SAMPLES = 8


def write_samples(folder: Path, config: RunConfig, data: Data, model: nn.Module) -> None:
    """Prompt, answer and expected response of the first test rows whose prompts differ; only where
    evaluation.generate is set."""
    most = config.evaluation.generate
    if not isinstance(config.task, AnswerSection) or most is None or config.evaluation.every is None:
        return
    distinct: dict[tuple[int, ...], Any] = {}
    for example in data.test:
        distinct.setdefault(tuple(example["prompt_ids"]), example)
    examples = list(distinct.values())[: min(most, MOST_SAMPLES)]
    prompts = [example["prompt_ids"] for example in examples]
    answers = generate_texts(
        model,
        data.tokenizer,
        prompts,
        max_new_tokens=config.task.max_new_tokens,
        batch_size=MOST_SAMPLES,
        ends=data.task.ends,
    )
    decoded = [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
    rows = zip(decoded, answers, examples, strict=True)
    write_jsonl(
        folder / "samples.jsonl", [{"prompt": p, "answer": a, "expected": e["response"]} for p, a, e in rows]
    )
