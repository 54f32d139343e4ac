"""From finished run folders to comparison.json: values, means, paired differences, the non-dominated set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedsb.compare.pareto import Point, non_dominated
from fedsb.compare.scored import headline, is_scored, scores_of
from fedsb.config import RunConfig
from fedsb.runner.folder import finished_summary

Record = dict[str, Any]


def collect(root: Path, methods: Sequence[str], metric: str | None = None) -> list[Record]:
    """One record per finished run in the folder: the methods named in order, then earlier ones by name.

    Args:
        metric: `compare.metric`.

    Raises:
        InputError: no run has it.
    """
    there = sorted(path.name for path in (root / "runs").glob("*") if path.is_dir())
    order = [*methods, *(name for name in there if name not in methods)]
    found = [
        _record(root, name, folder, metric)
        for name in order
        for folder in (root / "runs" / name).glob("seed-*")
    ]
    return sorted((r for r in found if r), key=lambda r: (order.index(r["method"]), r["seed"]))


def _record(root: Path, method: str, folder: Path, wanted: str | None) -> Record | None:
    summary = finished_summary(folder)
    if summary is None:
        return None
    config, sent = RunConfig.from_yaml(folder / "config.yaml"), summary["communication"]
    if config.evaluation.benchmarks and not is_scored(folder):
        return None
    metrics, rounds = scores_of(folder, config), sent["upload_bytes"] + sent["download_bytes"]
    about = headline(wanted, config, summary, metrics)
    cohort = config.federation.clients_per_round or config.federation.clients
    return {
        "method": method,
        "seed": config.seed,
        "metric": about.metric,
        "value": metrics.get(about.metric),
        "metrics": metrics,
        "round_metric": about.by_round,
        "total_bytes": sent["init_bytes"] + rounds,
        "run": folder.relative_to(root).as_posix(),
        "learning_rate": config.training.learning_rate,
        "base": summary["base"].get(about.metric),
        "init_bytes": sent["init_bytes"],
        "bytes_per_round": rounds / max(1, summary["rounds"]) / cohort,
        "higher_is_better": about.higher_is_better,
        "seconds": summary["seconds"],
        "privacy": _privacy(summary["privacy"]),
    }


def _privacy(stated: Mapping[str, Any] | None) -> Record | None:
    """What the run may claim alone."""
    if stated is None:
        return None
    return {key: stated[key] for key in ("unit", "private", "epsilon", "delta", "stopped_early")}


def summarize(runs: Sequence[Record]) -> dict[str, Record]:
    """By method, in order of appearance: mean, sample deviation (None of one seed), bytes, and the paired
    difference to the first method over the seeds that both have. Bytes are means over the seeds."""
    groups = by_method(runs)
    first = next(iter(groups.values()), [])
    return {method: _summary(held, first) for method, held in groups.items()}


def by_method(runs: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(run["method"], []).append(run)
    return groups


def _summary(held: Sequence[Record], first: Sequence[Record]) -> Record:
    values = [run["value"] for run in held]
    return {
        "mean": middle(values),
        "std": spread(values),
        "total_bytes": mean(run["total_bytes"] for run in held),
        "seeds": len(held),
        "learning_rate": held[0]["learning_rate"],
        "init_bytes": mean(run["init_bytes"] for run in held),
        "bytes_per_round": mean(run["bytes_per_round"] for run in held),
        "difference": difference(_by_seed(held), _by_seed(first)),
    }


def _by_seed(runs: Sequence[Record]) -> dict[int, float | None]:
    return {run["seed"]: run["value"] for run in runs}


def difference(mine: Mapping[int, float | None], first: Mapping[int, float | None]) -> Record:
    """Mean and sample deviation of mine minus first, seed by seed."""
    pairs = [(mine[seed], first[seed]) for seed in mine if seed in first]
    values = [None if a is None or b is None else a - b for a, b in pairs]
    return {"mean": middle(values), "std": spread(values), "seeds": len(values)}


def middle(values: Sequence[float | None]) -> float | None:
    """The mean; None of nothing, or if one is not known: leaving out what diverged would flatter."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def spread(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation; None of fewer than two, or if one is not known."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 and len(known) == len(values) else None


def pareto(summary: Mapping[str, Record], *, higher_is_better: bool) -> list[str]:
    """Methods that no other beats in mean total bytes and mean metric."""
    sign = 1 if higher_is_better else -1
    scored = [method for method, found in summary.items() if found["mean"] is not None]
    points = [Point(summary[m]["total_bytes"], sign * summary[m]["mean"]) for m in scored]
    return [scored[place] for place in non_dominated(points)]
