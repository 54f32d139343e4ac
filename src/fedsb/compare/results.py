"""From finished run folders to comparison.json: values, means, paired differences, the non-dominated set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fedsb.common.files import read_json
from fedsb.compare.intervals import paired_interval
from fedsb.compare.scored import headline, is_scored, scores_of
from fedsb.compare.tuning import DRAWN
from fedsb.config import RunConfig
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.composition import Releases, epsilon_over_runs, renyi_over_runs
from fedsb.privacy.ledger import LEDGER, Spend, read_spends
from fedsb.privacy.statement import rounded_up
from fedsb.report.units import plural
from fedsb.runner.folder import finished_summary


class Point(NamedTuple):
    """`cost`: less is better. `quality`: more is better."""

    cost: float
    quality: float


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other one beats, in order; equal points stay or go together.

    One beats another if it is at least as good in both and better in one. By rising cost and falling quality,
    a point stays if its quality is above every cheaper one's, and the best at its cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].quality))
    kept: list[int] = []
    for place in order:
        last = points[kept[-1]] if kept else None
        if last is None or points[place].quality > last.quality or points[place] == last:
            kept.append(place)
    return sorted(kept)


Record = dict[str, Any]


def collect(root: Path, methods: Sequence[str], metric: str | None = None) -> list[Record]:
    """One record per finished run in the folder: the methods named in order, then earlier ones by name.

    Raises:
        InputError: no run has `metric`, which is `compare.metric`.
    """
    there = sorted(path.name for path in (root / "runs").glob("*") if path.is_dir())
    order = [*methods, *(name for name in there if name not in methods)]
    records = [
        _record(root, name, folder, metric)
        for name in order
        for folder in (root / "runs" / name).glob("seed-*")
    ]
    return sorted((r for r in records if r), key=lambda r: (order.index(r["method"]), r["seed"]))


def _record(root: Path, method: str, folder: Path, metric: str | None) -> Record | None:
    summary = finished_summary(folder)
    if summary is None:
        return None
    config, sent = RunConfig.from_yaml(folder / "config.yaml"), summary["communication"]
    if config.evaluation.benchmarks and not is_scored(folder):
        return None
    metrics, rounds = scores_of(folder, config), sent["upload_bytes"] + sent["download_bytes"]
    about = headline(metric, config, summary, metrics)
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
        "routing": _routing(summary.get("mixture"), about.metric),
    }


def _routing(mixture: Mapping[str, Any] | None, metric: str) -> Record | None:
    """The metric by a mixture's other routings (see `runner.routing_record`), and how often its gate chose
    the right expert; None where there is one core."""
    if mixture is None:
        return None
    others = {kind: (mixture[kind] or {}).get(metric) for kind in ("oracle", "static")}
    return {**others, "right": mixture["right"]}


def _privacy(stated: Mapping[str, Any] | None) -> Record | None:
    """What the run may claim alone."""
    if stated is None:
        return None
    return {key: stated[key] for key in ("unit", "private", "epsilon", "delta", "stopped_early")}


def summarize(runs: Sequence[Record]) -> dict[str, Record]:
    """By method, in order of appearance: mean, sample deviation (None of one seed), bytes, and the paired
    difference to the first method over the seeds that both have. Bytes are means over the seeds."""
    groups = _by_method(runs)
    first, others = next(iter(groups.values()), []), len(groups) - 1
    return {method: _summary(held, first, others) for method, held in groups.items()}


def _by_method(runs: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(run["method"], []).append(run)
    return groups


def _summary(held: Sequence[Record], first: Sequence[Record], others: int) -> Record:
    values = [run["value"] for run in held]
    return {
        "mean": middle(values),
        "std": spread(values),
        "total_bytes": mean(run["total_bytes"] for run in held),
        "seeds": len(held),
        "learning_rate": held[0]["learning_rate"],
        "init_bytes": mean(run["init_bytes"] for run in held),
        "bytes_per_round": mean(run["bytes_per_round"] for run in held),
        "difference": difference(_by_seed(held), _by_seed(first), others),
        "routing": _mean_routing([run["routing"] for run in held]),
    }


def _mean_routing(routings: Sequence[Record | None]) -> Record | None:
    """Each number's mean over the seeds."""
    known = [routing for routing in routings if routing is not None]
    return {key: middle([routing[key] for routing in known]) for key in known[0]} if known else None


def _by_seed(runs: Sequence[Record]) -> dict[int, float | None]:
    return {run["seed"]: run["value"] for run in runs}


def difference(mine: Mapping[int, float | None], first: Mapping[int, float | None], looked_at: int) -> Record:
    """Mine minus first, seed by seed: mean, sample deviation, and the `paired_interval` of so many; whether
    they are separable is None where no interval is known."""
    values = _differences(mine, first)
    known = [value for value in values if value is not None]
    interval = paired_interval(known, looked_at) if len(known) == len(values) else None
    return {
        "mean": middle(values),
        "std": spread(values),
        "seeds": len(values),
        "interval": None if interval is None else list(interval),
        "separable": None if interval is None else interval.separable,
    }


def _differences(mine: Mapping[int, float | None], first: Mapping[int, float | None]) -> list[float | None]:
    pairs = [(mine[seed], first[seed]) for seed in mine if seed in first]
    return [None if a is None or b is None else a - b for a, b in pairs]


def better_than(runs: Sequence[Record], *, higher_is_better: bool) -> dict[str, list[str]]:
    """By method, the others that it is better than by an interval of all pairs together."""
    groups = {method: _by_seed(held) for method, held in _by_method(runs).items()}
    pairs = len(groups) * (len(groups) - 1) // 2
    sign = 1 if higher_is_better else -1

    def is_better(mine: str, other: str) -> bool:
        apart = difference(groups[mine], groups[other], pairs)
        return bool(apart["separable"]) and sign * apart["mean"] > 0

    return {mine: [other for other in groups if other != mine and is_better(mine, other)] for mine in groups}


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
    scored = [method for method, row in summary.items() if row["mean"] is not None]
    points = [Point(summary[m]["total_bytes"], sign * summary[m]["mean"]) for m in scored]
    return [scored[place] for place in non_dominated(points)]


UNITS = {
    "example": "one example of a client",
    "owner": "one owner of rows at a client",
    "client": "one whole client",
}


class Spending(NamedTuple):
    """What one run of the comparison released. selection: mean number of runs it was selected among."""

    unit: str
    releases: Releases
    arm: str
    selection: float | None


def privacy_together(root: Path, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By unit: how many runs of the comparison in this folder released something, with those that chose rates
    and those that were stopped, and what they cost together, at the largest delta of the runs named; by
    Renyi DP too, and, where rates were chosen by private selection, what that costs who sees the choice."""
    deltas = [claim["delta"] for run in runs if (claim := run["privacy"]) and claim["private"]]
    files = [file for part in ("tuning", "runs") for file in sorted((root / part).glob(f"*/*/{LEDGER}"))]
    spent = [_spending(file) for file in files if deltas and _noise_is_secret(file.parent)]
    return [
        _together([of for of in spent if of.unit == unit], unit, max(deltas))
        for unit in dict.fromkeys(of.unit for of in spent if of.releases)
    ]


def _spending(ledger: Path) -> Spending:
    run, arm = ledger.parent, ledger.parent.parent
    privacy = RunConfig.from_yaml(run / "config.yaml").privacy
    assert privacy is not None
    unit = privacy.protects
    drawn = arm / DRAWN
    selects = drawn.is_file() and run.name.startswith("draw-")
    mean_runs = read_json(drawn)["mean"] if selects else None
    return Spending(unit, _releases(read_spends(ledger), unit), arm.name, mean_runs)


def _together(spent: Sequence[Spending], unit: str, delta: float) -> dict[str, Any]:
    """Of all runs; runs that were selected among are counted by their selection, which hides their number."""
    known = [of for of in spent if of.releases]
    plain = [of.releases for of in known if of.selection is None]
    tried: dict[str, list[Spending]] = {}
    for of in known:
        if of.selection is not None:
            tried.setdefault(of.arm, []).append(of)
    selections = [([of.releases for of in runs], runs[0].selection or 1.0) for runs in tried.values()]
    renyi = renyi_over_runs(plain, delta, selections)
    return {
        "unit": unit,
        "runs": len(plain),
        "selections": len(selections),
        "epsilon": renyi if selections else epsilon_over_runs(plain, delta),
        "epsilon_rdp": renyi,
        "delta": delta,
    }


def _noise_is_secret(run: Path) -> bool:
    privacy = RunConfig.from_yaml(run / "config.yaml").privacy
    return privacy is not None and privacy.insecure_seed is None


def _releases(spends: Sequence[Spend], unit: str) -> Releases:
    """Those of one run that are about this unit, by client."""
    releases: dict[int | None, list[Mechanism]] = {}
    for spend in spends:
        if (spend.client is None) == (unit == "client"):
            releases.setdefault(spend.client, []).append(spend.mechanism)
    return releases


def privacy_sentence(
    runs: Sequence[Mapping[str, Any]], together: Sequence[Mapping[str, Any]] = ()
) -> str | None:
    """What records of runs, and what they cost together, say of privacy; None if no run asked for it."""
    stated = [run["privacy"] for run in runs if run["privacy"]]
    if not stated:
        return None
    private = [claim for claim in stated if claim["private"]]
    if not private:
        return "No run is private: the noise came from a fixed seed."
    who = "Each run alone is"
    if len(private) < len(runs):
        who = f"Of {plural(len(runs), 'run')}, {len(private)} alone {'is' if len(private) == 1 else 'are'}"
    sentences = [f"{who} differentially private, {_bound_of(private)}."]
    sentences += [_total(total) for total in together if total["runs"] > 1 or total["selections"]]
    if not together and len(private) > 1:
        sentences.append("All of them together, on the same data, spend more.")
    return " ".join(sentences)


def _total(total: Mapping[str, Any]) -> str:
    """Client numbers mean other rows in other runs, so that no client is named."""
    same = "a client that is the same in all of them"
    who = same if total["unit"] == "client" else f"any one {total['unit']}"
    cost = f"together cost epsilon {rounded_up(total['epsilon']):.3g} at delta {total['delta']:.3g} for {who}"
    if total["selections"]:
        return (
            f"{plural(total['runs'], 'private run')} on the same rows, and "
            f"{plural(total['selections'], 'learning rate')} chosen by private selection, {cost}, by Renyi "
            "accounting, to whoever sees neither the runs that were tried nor how many they were. The rows "
            "held out to choose have this of the final runs alone."
        )
    return (
        f"{plural(total['runs'], 'private run')} on the same rows, with those that chose learning rates or "
        f"were stopped, {cost} (Renyi accounting gives {total['epsilon_rdp']:.3g})."
    )


def _bound_of(claims: Sequence[Mapping[str, Any]]) -> str:
    spent = _range_of("epsilon", [rounded_up(claim["epsilon"]) for claim in claims])
    deltas = _range_of("delta", [claim["delta"] for claim in claims])
    return f"with {spent} and {deltas} for {' or '.join(sorted({UNITS[claim['unit']] for claim in claims}))}"


def _range_of(name: str, values: Sequence[float]) -> str:
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return f"{name} {most}" if least == most else f"{name} {least} to {most}"
