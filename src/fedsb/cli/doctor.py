"""Preflight: what would go wrong in a run, found before it starts, and what the run would take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.method import method_of
from fedsb.errors import InputError
from fedsb.methods import Counts
from fedsb.models.devices import slow_bfloat16
from fedsb.models.digest import base_digest
from fedsb.report.cuts import cut_notes
from fedsb.report.tracking import check_tracking
from fedsb.report.units import human_bytes
from fedsb.runner.arguments import local_training
from fedsb.runner.earlier_run import check_starts_from, earlier_run
from fedsb.runner.memory import check_memory
from fedsb.runner.prepare_data import Data, cut_record, prepare_data
from fedsb.runner.prepare_model import BaseModel, exchange_of, free_memory, memory_of, prepare_base
from fedsb.runner.started_on import versions
from fedsb.tasks.scoring.benchmark import check_benchmarks


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    what: str
    ok: bool
    detail: str


def examine(config: RunConfig | None) -> Iterator[Finding]:
    """Check the installation, then (with a config) data, model, layers, traffic and memory, in that order.
    The first thing that fails ends the list."""
    yield Finding("versions", True, ", ".join(f"{n} {v}" for n, v in versions().items()))
    yield Finding("device", True, _device())
    yield Finding("disk", True, f"{human_bytes(shutil.disk_usage(Path.cwd()).free)} free here")
    if config is None:
        return
    looked_at = "method"
    try:
        yield Finding("method", True, _describe_method(config))
        looked_at = "precision"
        if slow := slow_bfloat16(config.model.dtype, config.training.autocast, config.model.device):
            yield Finding("precision", True, slow)
        if config.tracking:
            looked_at = "tracking"
            check_tracking(config.tracking)
            yield Finding("tracking", True, ", ".join(config.tracking))
        looked_at = "data"
        data = prepare_data(config)
        yield Finding("data", True, _describe_data(data))
        yield from (Finding("tokens", True, text) for text in _describe_tokens(config, data))
        if config.evaluation.benchmarks:
            looked_at = "benchmarks"
            questions, warnings = check_benchmarks(config, data.task)
            names = ", ".join(config.evaluation.benchmarks)
            yield Finding("benchmarks", True, "; ".join([f"{questions} questions of {names}", *warnings]))
        looked_at = "memory"
        yield Finding("memory", True, _describe_memory(config, data))
        looked_at = "model"
        base = prepare_base(config, data)
        yield Finding("target layers", True, _describe_targets(base))
        looked_at = "start"
        if earlier := earlier_run(config):
            check_starts_from(earlier, config, data, base, base_digest(base.model, base.task_head))
            yield Finding("start", True, f"from the adapter of {config.method.init.from_run}")
        yield from (Finding(what, True, detail) for what, detail in _estimates(config, data, base))
    except InputError as error:
        yield Finding(looked_at, False, str(error))


def _numbers_of_a_round(config: RunConfig, base: BaseModel, cohort: int) -> Counts:
    """What one client trains, sends and receives in a round: the method's factors and the head."""
    exchange = exchange_of(config, base)
    method, rank, heads = exchange.method, exchange.rank, exchange.heads
    layers = [method.cost(shape, rank, heads, cohort) for shape in exchange.layers.values()]
    head = sum(p.numel() for p in base.task_head.values())
    return Counts(*(head + sum(counts) for counts in zip(*layers, strict=True)))


def _describe_method(config: RunConfig) -> str:
    check_settings(config)
    method = method_of(config)
    kind = "exact" if method.exact else "inexact"
    return f"{method.name} ({kind} average; {method.source}), trains {', '.join(method.trains(1))}"


def _describe_data(data: Data) -> str:
    sizes = [len(part) for part in data.parts]
    labels = f", labels {', '.join(data.task.label_names[:6])}" if data.task.label_names else ""
    return (
        f"{len(data.train)} train and {len(data.test)} test examples, {len(sizes)} clients with "
        f"{min(sizes)} to {max(sizes)} each{labels}"
    )


def _describe_tokens(config: RunConfig, data: Data) -> Iterator[str]:
    record = cut_record(config, data, shown=False)
    for split, counts in record.items():
        lengths = ", ".join(f"{name} {length:,}" for name, length in counts["length"].items())
        yield f"in {split} examples: {lengths}"
    yield from cut_notes(record)


def _describe_memory(config: RunConfig, data: Data) -> str:
    memory, free = memory_of(config, data), free_memory(config)
    check_memory(memory, free, config)
    needed = "not known from the config of this model" if memory is None else str(memory)
    return f"{needed}; {human_bytes(free)} free"


def _describe_targets(base: BaseModel) -> str:
    endings = sorted({name.rsplit(".", 1)[-1] for name in base.targets})
    return "; ".join([f"{len(base.targets)} layers ({', '.join(endings)})", *base.notes])


def _estimates(config: RunConfig, data: Data, base: BaseModel) -> Iterator[tuple[str, str]]:
    federation = config.federation
    cohort = federation.clients_per_round or federation.clients
    numbers = _numbers_of_a_round(config, base, cohort)
    training = local_training(config)
    steps = sum(training.steps_per_round(len(part)) for part in data.parts) / len(data.parts)
    bytes_up = getattr(torch, federation.upload_dtype).itemsize * numbers.up
    up, down = human_bytes(bytes_up), human_bytes(4 * numbers.down)
    yield "update", f"{numbers.up:,} numbers; {up} up and {down} down per client and round"
    total = (bytes_up + 4 * numbers.down) * cohort * federation.rounds
    yield "traffic", f"about {human_bytes(total)} over all rounds"
    if (robust := federation.robust) is not None and robust.average != "mean":
        held = human_bytes(4 * numbers.up * cohort)
        yield "server memory", f"{held}: the {robust.average} needs all updates of a round at once"
    yield "work", f"about {steps:.0f} optimizer steps per client and round, {federation.rounds} rounds"


def _device() -> str:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {human_bytes(free)} of {human_bytes(total)} free"
    return f"CPU, {torch.get_num_threads()} threads"


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as one JSON document."""
    return {"ok": all(f.ok for f in findings), "findings": [vars(f) for f in findings]}
