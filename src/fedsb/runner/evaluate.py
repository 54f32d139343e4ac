"""Score a model, with or without an adapter, on a config's test data and its benchmarks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsb.adapter.attached import Attached
from fedsb.adapter.mixture import mixture_of
from fedsb.common.files import write_json, write_jsonl
from fedsb.common.seeding import numpy_generator
from fedsb.common.stage import stage
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models import load_preprocessor
from fedsb.models.limits import check_token_ids
from fedsb.models.mixture_folder import is_mixture
from fedsb.report.cuts import cut_notes
from fedsb.report.progress import Progress, Silent, counted
from fedsb.runner.chosen_lora import model_folder
from fedsb.runner.finished_model import load_with_adapter
from fedsb.runner.lengths import with_length
from fedsb.runner.moved_base import with_base
from fedsb.runner.prepare_data import encode, sized_task
from fedsb.runner.prepare_experts import with_known_experts
from fedsb.runner.prepare_model import check_limits, head_notes, largest_id
from fedsb.runner.routing_record import other_routings
from fedsb.runner.split_record import kept_split
from fedsb.runner.vllm import check_vllm, vllm_engines
from fedsb.tasks import Row, Task
from fedsb.tasks.cuts import cut_counts
from fedsb.tasks.generate import Engine, transformers_engine
from fedsb.tasks.held_out import Split
from fedsb.tasks.intervals import Score, mean_of_shares, scores
from fedsb.tasks.scoring.benchmark import (
    Questions,
    check_benchmarks,
    decoding_of,
    likeliest,
    marked,
    questions_of,
    share_of,
)
from fedsb.tasks.scoring.outputs import answered, key_of
from fedsb.tasks.sources import run_rows, test_name
from fedsb.tasks.task import Example, Measurement

FOLDER, SCORES = "evaluation", "scores.json"
"""In a run folder: where a finished run's scores and outputs are."""


@dataclass(frozen=True)
class _Model:
    """What is scored: a model by name or folder, perhaps with an adapter."""

    path: str
    adapter: Path | None
    loaded: nn.Module
    tokenizer: Any
    task: Task


def evaluate(
    config: RunConfig,
    *,
    model: str,
    adapter: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    kept: Split | None = None,
) -> dict[str, Any]:
    """Metrics of `model` (hub id or folder), with an adapter if given: {"metrics": name -> number,
    "examples": test examples, "scores": name -> value, low, high, count, interval}.

    Metrics of a benchmark are called NAME_METRIC. Of a mixture also {"other_routings": {"oracle", "static"}}:
    scores of the test examples as `other_routings` says, without generated texts.

    Args:
        adapter: a PEFT folder, or that of a mixture, which is scored as it routes.
        out: folder for outputs (NAME.jsonl) and scores.json; what lies there of the same model and questions
            is used, so that an evaluation that was stopped resumes.
        kept: the split of the run that is scored, where its test rows are a share of its rows.

    Raises:
        InputError: model, adapter, data or columns are wrong.
    """
    progress = progress or Silent()
    progress.stage("reading data")
    if config.scored_at_clients_alone:
        raise InputError(
            "data.test: there are no test rows in one place, and the clients' own are not here; name a file, "
            "e.g. -s data.test=test.jsonl"
        )
    rows, test, _ = run_rows(config, progress.stage, kept)
    tokenizer = load_preprocessor(model, config.task.model_class)
    length, task, _ = sized_task(config, tokenizer, rows)
    config = with_length(config, length.tokens)
    examples = encode(task, test, test_name(config))
    routes = adapter is not None and is_mixture(adapter)
    cut = cut_notes({"test": cut_counts(examples, length.tokens)})
    for warning in (*cut, *_check_answers(config, task, routes=routes)):
        progress.stage(f"warning: {warning}")
    progress.stage(f"loading {Path(model).name}")
    for note in head_notes(config, model, task) if adapter is None else ():
        progress.stage(note)
    loaded, attached = load_with_adapter(config, model, tokenizer, task, adapter)
    check_limits(config, loaded, tokenizer, examples, path=model)
    progress.stage(f"scoring {len(examples)} test examples")
    size, generate, report = config.evaluation.batch_size, config.evaluation.generate, progress.evaluating
    with stage("--model", "scoring the test examples", "take another model, or evaluation.batch_size"):
        measured = task.measure(loaded, examples, batch_size=size, generate=generate, progress=report)
    results = scores(measured, numpy_generator(config.seed, "bootstrap"))
    results |= _benchmarks(config, _Model(model, adapter, loaded, tokenizer, task), out, progress)
    result = {
        "metrics": {name: score.value for name, score in results.items()},
        "examples": len(examples),
        "scores": {name: score.to_json() for name, score in results.items()},
    }
    if attached is not None:
        result["other_routings"] = _other_routings(config, attached, task, examples, test)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SCORES, result)
    return result


def _other_routings(
    config: RunConfig, attached: Attached, task: Task, examples: list[Example], rows: Sequence[Row]
) -> dict[str, Any]:
    """Scores of a mixture's test examples by each other routing; None where it cannot be told."""
    mixture = mixture_of(attached)
    size = config.evaluation.batch_size

    def scored(model: nn.Module) -> dict[str, Any]:
        measured = task.measure(model, known, batch_size=size)
        bootstrap = numpy_generator(config.seed, "bootstrap")
        return {name: score.to_json() for name, score in scores(measured, bootstrap).items()}

    known = with_known_experts(config, mixture.experts, rows, examples)
    return other_routings(attached, known, scored)


def check_evaluation(config: RunConfig) -> list[str]:
    """Warnings about a config's benchmarks, once all that they need but the model was looked at.

    Raises:
        InputError: as `evaluate`.
    """
    rows = run_rows(config).train
    tokenizer = load_preprocessor(config.model.path, config.task.model_class)
    length, task, _ = sized_task(config, tokenizer, rows)
    config = with_length(config, length.tokens)
    return _check_answers(config, task, routes=config.method.experts is not None)


def _check_answers(config: RunConfig, task: Task, *, routes: bool) -> list[str]:
    if config.evaluation.benchmarks and config.evaluation.generation.engine == "vllm":
        if routes:
            raise InputError(
                "evaluation.generation.engine: vllm has no router between the experts of a mixture; take "
                "transformers"
            )
        check_vllm()
    return check_benchmarks(config, task)[1]


def evaluate_run(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Score a finished run on its own config, into its folder and its report.

    Raises:
        InputError: the folder holds no finished run, or as `evaluate`.
    """
    from fedsb.report import write_report

    if not (folder / "summary.json").is_file():
        raise InputError(f"--run: {folder} holds no finished run (no summary.json)")
    config = with_base(RunConfig.from_yaml(folder / "config.yaml"), None, "-s model.path=PATH")
    adapter, out = model_folder(folder), folder / FOLDER
    kept = kept_split(folder, config)
    result = evaluate(config, model=config.model.path, adapter=adapter, out=out, progress=progress, kept=kept)
    write_report([folder], folder / "report.html")
    return result


# Benchmarks


def _benchmarks(config: RunConfig, model: _Model, out: Path | None, progress: Progress) -> dict[str, Score]:
    """Scores of all benchmarks, and the mean accuracy where several have one."""
    results: dict[str, Score] = {}
    with contextlib.ExitStack() as stack:
        engines = stack.enter_context(_engines(config, model))
        for name in config.evaluation.benchmarks:
            asked = questions_of(name, config, model.task, stack)
            measured = _measured(asked, config, model, engines, out, progress)
            rng = numpy_generator(config.seed, "bootstrap", name)
            results |= {f"{name}_{metric}": score for metric, score in scores([measured], rng).items()}
    accuracies = [score for name, score in results.items() if name.endswith("_accuracy")]
    if len(accuracies) > 1:
        results["mean_accuracy"] = mean_of_shares(accuracies)
    return results


def _measured(
    asked: Questions,
    config: RunConfig,
    model: _Model,
    engines: Callable[[Questions], Engine],
    out: Path | None,
    progress: Progress,
) -> Measurement:
    progress.stage(f"asking {len(asked.examples)} questions of {asked.name}")
    ids = [example["prompt_ids"] for example in asked.examples]
    check_token_ids(model.loaded, model.tokenizer, largest_id(asked.examples), model.path)
    prompts = [str(model.tokenizer.decode(prompt, skip_special_tokens=True)) for prompt in ids]
    report = counted(len(ids), progress.evaluating)
    if not asked.generates:
        chosen = likeliest(asked, config, model.task, model.loaded, prompts, report)
        correct = [choice == gold for choice, gold in zip(chosen, asked.expected, strict=True)]
        columns = ("prompt", "extracted", "expected", "correct")
        lines = zip(prompts, chosen, asked.expected, correct, strict=True)
        measured, records = share_of(correct), [dict(zip(columns, line, strict=True)) for line in lines]
    else:
        path = out / f"{asked.name}.outputs.jsonl" if out is not None else None
        size, key = config.evaluation.batch_size, _key(config, model, asked, ids)
        outputs = answered(ids, engines(asked), batch_size=size, path=path, key=key, report=report)
        measured, records = marked(asked, outputs, prompts)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / f"{asked.name}.jsonl", records)
    return measured


def _key(config: RunConfig, model: _Model, asked: Questions, ids: list[list[int]]) -> str:
    """The key of all that decides the outputs: the model, the prompts, the way of decoding."""
    return key_of(
        model=[model.path, *_weights(Path(model.path))],
        adapter=[str(model.adapter), *_weights(model.adapter)] if model.adapter else None,
        dtype=config.model.dtype,
        engine=config.evaluation.generation.engine,
        prompts=ids,
        batch_size=config.evaluation.batch_size,
        decoding=asdict(decoding_of(config, asked.benchmark, ends=model.task.ends)),
    )


def _weights(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the weight files in a folder; none of a hub id."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@contextlib.contextmanager
def _engines(config: RunConfig, model: _Model) -> Iterator[Callable[[Questions], Engine]]:
    """What answers a benchmark's prompts."""
    if config.evaluation.generation.engine == "transformers":
        yield lambda asked: transformers_engine(
            model.loaded, model.tokenizer, decoding_of(config, asked.benchmark, ends=model.task.ends)
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = model.path
        if model.adapter is not None:
            from fedsb.runner.export import export_merged

            path = str(Path(folder) / "merged")
            export_merged(model.adapter.parent, Path(path), base=model.path)
        model.loaded.to("cpu")  # vLLM wants the device for itself
        torch.cuda.empty_cache()
        engines = vllm_engines(path, dtype=config.model.dtype)
        yield lambda asked: engines(decoding_of(config, asked.benchmark, ends=model.task.ends))
