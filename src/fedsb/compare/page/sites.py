"""How each method does over the sites, where clients were scored on rows of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from fedsb.compare.page.load import Compared
from fedsb.report import facts
from fedsb.report.markup import numbers, paragraph, table, texts
from fedsb.report.metrics import describe, show, show_apart
from fedsb.report.sites import of_metric
from fedsb.report.units import DASH, count

MOST_SITES = 12


def sites(comparison: Compared) -> str:
    """Each method's sites, means over the seeds; empty where no run has scores of sites."""
    scored = {name: _scores(comparison, name) for name in comparison.summary}
    scored = {name: runs for name, runs in scored.items() if runs}
    if not scored:
        return ""
    metric = comparison.round_metric
    each = list(dict.fromkeys(site for runs in scored.values() for run in runs for site in run))
    shown = sorted(each, key=facts.natural) if len(each) <= MOST_SITES else []
    title = describe(metric).title.lower()
    columns = texts("method") + numbers(f"{title}, mean of sites", "worst site", "best less worst")
    columns += numbers("deviation over sites", "runs", *(_called(comparison, site) for site in shown))
    rows = [[name, *_row(metric, runs, shown)] for name, runs in scored.items()]
    note = (
        "Of rows that no site trains on, after the last round, each site counting once; means over the runs. "
        "The worst site is each run's own."
    )
    return table(f"{describe(metric).title} at the sites", columns, rows) + paragraph(note, "note")


def _scores(comparison: Compared, method: str) -> list[dict[str, float]]:
    """Of each run, site -> its score."""
    runs = [of_metric(facts.site_scores(run), comparison.round_metric) for run in comparison.folders(method)]
    return [run for run in runs if run]


def _row(metric: str, runs: Sequence[dict[str, float]], shown: Sequence[str]) -> list[str]:
    worst = max if describe(metric).best is min else min

    def mean(of: Callable[[list[float]], float]) -> float:
        return fmean(of(list(run.values())) for run in runs)

    spread = mean(stdev) if all(len(run) > 1 for run in runs) else None
    apart = [show_apart(metric, value) for value in (mean(lambda v: max(v) - min(v)), spread)]
    ends = [show(metric, mean(fmean)), show(metric, mean(worst)), *apart]
    by_site = [[run[site] for run in runs if site in run] for site in shown]
    return [*ends, count(len(runs)), *(show(metric, fmean(v)) if v else DASH for v in by_site)]


def _called(comparison: Compared, site: str) -> str:
    run = next(iter(comparison.loaded.values()))
    return facts.named(run, site)
