"""Preflight: what would go wrong in a run, found before it starts, and what the run would take."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedsb.common.cores import Use, usable_cores
from fedsb.common.stage import show_if_debugging
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.method import method_of
from fedsb.config.private_defaults import notes_on_defaults
from fedsb.errors import FedsbError
from fedsb.methods import Counts
from fedsb.models.blank import takes_images, vision_config
from fedsb.models.devices import slow_bfloat16
from fedsb.models.digest import base_digest
from fedsb.models.limits import embedding_rows, positions_of
from fedsb.report.cuts import cut_notes, length_lines
from fedsb.report.tracking import check_tracking
from fedsb.report.units import human_bytes, plural
from fedsb.runner.arguments import local_training
from fedsb.runner.earlier_run import check_starts_from, earlier_run
from fedsb.runner.memory import check_memory
from fedsb.runner.prepare_data import Data, cut_record, prepare_data
from fedsb.runner.prepare_model import BaseModel, exchange_of, free_memory, memory_of, prepare_base
from fedsb.runner.privacy_forecast import forecast
from fedsb.runner.processes import check_engine
from fedsb.runner.started_on import versions
from fedsb.runner.threads import choose_threads
from fedsb.runner.trial import try_rows
from fedsb.tasks.scoring.benchmark import check_benchmarks


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table. ok is None where something else had to be right first."""

    what: str
    ok: bool | None
    detail: str


Lines = list[tuple[str, str]]
"""(what was looked at, what is said of it)."""


class Stage(NamedTuple):
    """A part of a run that can be tried by itself.

    Attributes:
        needs: the stages before it whose results it takes.
        look: (config, those results) -> its own result, and what to say.
    """

    what: str
    needs: tuple[str, ...]
    look: Callable[..., tuple[Any, Lines]]


def examine(config: RunConfig | None) -> Iterator[Finding]:
    """Check the installation, then (with a config) every stage of a run, on two rows where it computes.

    A stage that fails is a finding, whatever it fails with; those that need it are not checked.
    """
    yield Finding("versions", True, ", ".join(f"{n} {v}" for n, v in versions().items()))
    yield Finding("device", True, _device())
    yield Finding("disk", True, f"{human_bytes(shutil.disk_usage(Path.cwd()).free)} free here")
    results: dict[str, Any] = {}
    for stage in _stages(config) if config else ():
        if missing := [name for name in stage.needs if name not in results]:
            yield Finding(stage.what, None, f"not checked, since it needs {missing[0]}")
            continue
        try:
            settled = results["data"].settled(config) if "data" in results else config
            results[stage.what], lines = stage.look(settled, *(results[name] for name in stage.needs))
        except Exception as error:
            show_if_debugging(error)
            yield Finding(stage.what, False, _said(error))
        else:
            yield from (Finding(what, True, detail) for what, detail in lines)


def _stages(config: RunConfig) -> list[Stage]:
    """Those of the config's run: of one without privacy there is no noise to foresee."""
    return [stage for stage in STAGES if stage.what != "privacy" or config.privacy is not None]


def _said(error: Exception) -> str:
    if isinstance(error, FedsbError):
        return str(error)
    return f"a defect of fedsb ({type(error).__name__}); add --debug to see where, and report it"


def _method(config: RunConfig) -> tuple[None, Lines]:
    slow = slow_bfloat16(config.model.dtype, config.training.autocast, config.model.device)
    return None, [("method", _describe_method(config)), *([("precision", slow)] if slow else [])]


def _tracking(config: RunConfig) -> tuple[None, Lines]:
    check_tracking(config.tracking)
    return None, [("tracking", ", ".join(config.tracking))] if config.tracking else []


def _data(config: RunConfig, method: None) -> tuple[Data, Lines]:
    data = prepare_data(config)
    tokens = [("tokens", text) for text in _describe_tokens(config, data)]
    notes = [("task", note) for note in data.task.notes] + [("rows", note) for note in data.notes]
    return data, [("data", _describe_data(data)), *notes, *tokens]


def _benchmarks(config: RunConfig, data: Data) -> tuple[None, Lines]:
    if not config.evaluation.benchmarks:
        return None, []
    questions, warnings = check_benchmarks(config, data.task)
    names = ", ".join(config.evaluation.benchmarks)
    return None, [("benchmarks", "; ".join([f"{questions} questions of {names}", *warnings]))]


def _memory(config: RunConfig, data: Data) -> tuple[None, Lines]:
    return None, [("memory", _describe_memory(config, data))]


def _model(config: RunConfig, data: Data, memory: None) -> tuple[BaseModel, Lines]:
    use, base = Use(), prepare_base(config, data)
    number, why = choose_threads(config, base.model, use)
    return base, [
        ("limits", _describe_limits(base, data)),
        ("target layers", _describe_targets(base)),
        ("threads", f"{number}, {why}"),
    ]


def _start(config: RunConfig, data: Data, base: BaseModel) -> tuple[None, Lines]:
    if not (earlier := earlier_run(config)):
        return None, []
    check_starts_from(earlier, config, data, base, base_digest(base.model, base.task_head))
    return None, [("start", f"from the adapter of {config.method.init.from_run}")]


def _two_rows(config: RunConfig, data: Data, base: BaseModel) -> tuple[None, Lines]:
    return None, [("training", f"a step on {plural(try_rows(config, data, base), 'row')} works")]


def _privacy(config: RunConfig, data: Data, base: BaseModel) -> tuple[None, Lines]:
    numbers = _numbers_of_a_round(config, base, len(data.parts)).up
    sizes, tests = [*map(len, data.parts)], [*map(len, data.client_tests)]
    lines = forecast(config, sizes, numbers, tests, data.owners).lines()
    return None, [("privacy", line) for line in (*notes_on_defaults(config), *lines)]


def _traffic(config: RunConfig, data: Data, base: BaseModel) -> tuple[None, Lines]:
    return None, list(_estimates(config, data, base))


STAGES = (
    Stage("method", (), _method),
    Stage("tracking", (), _tracking),
    Stage("data", ("method",), _data),
    Stage("benchmarks", ("data",), _benchmarks),
    Stage("memory", ("data",), _memory),
    Stage("model", ("data", "memory"), _model),
    Stage("start", ("data", "model"), _start),
    Stage("training", ("data", "model"), _two_rows),
    Stage("traffic", ("data", "model"), _traffic),
    Stage("privacy", ("data", "model"), _privacy),
)
"""In the order of a run."""


def _numbers_of_a_round(config: RunConfig, base: BaseModel, cohort: int) -> Counts:
    """What one client trains, sends and receives in a round: the method's factors and the head."""
    exchange = exchange_of(config, base)
    method, rank, heads = exchange.method, exchange.rank, exchange.heads
    layers = [method.cost(shape, rank, heads, cohort) for shape in exchange.layers.values()]
    head = sum(p.numel() for p in base.task_head.values())
    return Counts(*(head + sum(counts) for counts in zip(*layers, strict=True)))


def _describe_method(config: RunConfig) -> str:
    check_settings(config)
    check_engine(config)
    method = method_of(config)
    kind = "exact" if method.exact else "inexact"
    return f"{method.name} ({kind} average; {method.source}), trains {', '.join(method.trains(1))}"


def _describe_data(data: Data) -> str:
    sizes = [len(part) for part in data.parts]
    spare = sum(map(len, data.client_tests))
    spared = f", {spare} more held out to score clients on" if spare else ""
    held = Counter(data.labels or ())
    names = [f"{name} {held[name]:,}" if held else name for name in (data.task.label_names or ())[:6]]
    labels = f", labels {', '.join(names)}" if names else ""
    return (
        f"{len(data.train) - spare} train and {len(data.test)} test examples, {len(sizes)} clients with "
        f"{min(sizes)} to {max(sizes)} each{spared}{labels}"
    )


def _describe_tokens(config: RunConfig, data: Data) -> Iterator[str]:
    record = cut_record(config, data, shown=False)
    yield from length_lines(record)
    yield from cut_notes(record)


def _describe_memory(config: RunConfig, data: Data) -> str:
    memory, free = memory_of(config, data), free_memory(config)
    check_memory(memory, free, config)
    needed = str(memory) if memory else "not known from the config of this model"
    if not config.model.check_memory:
        needed = "not estimated (model.check_memory: false)"
    return f"{needed}; {human_bytes(free)} free"


def _describe_limits(base: BaseModel, data: Data) -> str:
    if takes_images(base.model):
        config = vision_config(base.model.config)
        return f"images of {config.image_size} pixels in patches of {config.patch_size}"
    positions, rows = positions_of(base.model), embedding_rows(base.model)
    trained = " that it was trained on" if positions and positions.trained else ""
    length = f"{positions.usable:,} positions{trained}" if positions else "no limit on positions"
    tokens = f"{len(data.tokenizer):,} tokens of the tokenizer"
    return f"{length}; " + (tokens if rows is None else f"{rows:,} embeddings for {tokens}")


def _describe_targets(base: BaseModel) -> str:
    endings = sorted({name.rsplit(".", 1)[-1] for name in base.targets})
    return "; ".join([f"{len(base.targets)} layers ({', '.join(endings)})", *base.notes])


def _estimates(config: RunConfig, data: Data, base: BaseModel) -> Iterator[tuple[str, str]]:
    """What a round and the run will send and compute."""
    federation = config.federation
    cohort = federation.clients_per_round or federation.clients
    trained, copies = _numbers_of_a_round(config, base, cohort), len(exchange_of(config, base).kinds)
    sent_up, sent_down = (1 + copies) * trained.up, trained.down + copies * trained.up
    training = local_training(config)
    steps = sum(training.steps_per_round(len(part)) for part in data.parts) / len(data.parts)
    bytes_up, bytes_down = getattr(torch, federation.upload_dtype).itemsize * sent_up, 4 * sent_down
    up, down = human_bytes(bytes_up), human_bytes(bytes_down)
    most = "at most " if config.method.init.ranks == "spectrum" else ""
    yield "update", f"{most}{sent_up:,} numbers; {up} up and {down} down per client and round"
    total = (bytes_up + bytes_down) * cohort * federation.rounds
    yield "traffic", f"about {human_bytes(total)} over all rounds"
    if (robust := federation.robust) is not None and robust.average != "mean":
        held = human_bytes(4 * sent_up * cohort)
        yield "server memory", f"{held}: the {robust.average} needs all updates of a round at once"
    yield "work", f"about {steps:.0f} optimizer steps per client and round, {federation.rounds} rounds"


def _device() -> str:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {human_bytes(free)} of {human_bytes(total)} free"
    return f"CPU, {plural(usable_cores(), 'core')}"


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as one JSON document."""
    return {"ok": all(f.ok for f in findings), "findings": [vars(f) for f in findings]}
