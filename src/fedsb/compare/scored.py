"""The scores of a finished run, its benchmarks' included, and which of them the comparison is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsb.common.files import read_json
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.report.metrics import KNOWN, describe
from fedsb.runner.evaluate import FOLDER, SCORES
from fedsb.runner.folder import finished_summary


@dataclass(frozen=True)
class Headline:
    """The metric that a comparison is about, and the one of each round that goes with it."""

    metric: str
    by_round: str
    higher_is_better: bool


def is_scored(folder: Path) -> bool:
    """Whether the benchmarks of the finished run in this folder have been answered."""
    return (folder / FOLDER / SCORES).is_file()


def scores_of(folder: Path, config: RunConfig) -> dict[str, float]:
    """Every final metric by name; a benchmark's is called NAME_METRIC."""
    summary = finished_summary(folder)
    metrics = dict(summary["final"]) if summary else {}
    if config.evaluation.benchmarks and is_scored(folder):
        metrics = read_json(folder / FOLDER / SCORES).get("metrics", {}) | metrics
    return metrics


def headline(
    requested: str | None, config: RunConfig, summary: dict[str, Any], measured: Iterable[str]
) -> Headline:
    """`compare.metric`; else the benchmarks' mean accuracy or first metric, else the task's own.

    Args:
        summary: of a finished run. measured: names of the metrics that it has.

    Raises:
        InputError: the metric requested is none of them.
    """
    primary, names = str(summary["primary_metric"]), list(measured)
    if requested is not None and requested not in names:
        raise InputError(f"compare.metric: {requested!r} was not measured; there are {', '.join(names)}")
    metric = requested or _of_benchmarks(config, names) or primary
    higher = bool(summary["higher_is_better"]) if metric == primary else describe(metric).best is not min
    return Headline(metric, metric if metric in summary["final"] else primary, higher)


def _of_benchmarks(config: RunConfig, names: list[str]) -> str | None:
    if "mean_accuracy" in names:
        return "mean_accuracy"
    return next((n for b in config.evaluation.benchmarks for n in names if n.startswith(f"{b}_")), None)


def check_metric(metric: str | None, config: RunConfig) -> None:
    """Refuse a metric that no run of this config can have, before any is done.

    Raises:
        InputError: with the names that can be.
    """
    benchmarks = list(config.evaluation.benchmarks)
    if metric is None or (metric == "mean_accuracy" and len(benchmarks) > 1):
        return
    if describe(metric).best is None or not _can_be(metric, benchmarks):
        asked = "".join(f", or {name}_METRIC" for name in benchmarks)
        raise InputError(
            f"compare.metric: found {metric!r}; expected a metric such as accuracy or loss{asked}"
        )


def _can_be(metric: str, benchmarks: list[str]) -> bool:
    alone = metric in KNOWN and metric != "mean_accuracy"
    return alone or any(metric.startswith(f"{name}_") for name in benchmarks)
