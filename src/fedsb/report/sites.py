"""How the model does at each site: a table with what it is compared with, and the sites' scores by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean

from fedsb.report import facts
from fedsb.report.canvas import Plot
from fedsb.report.load import Run, mapping, number
from fedsb.report.markup import numbers, paragraph, table, texts
from fedsb.report.metrics import describe, show, show_apart, show_change, show_tick
from fedsb.report.plots import Curve, Span, curves
from fedsb.report.units import count, plural

BASELINES = {"local": "trained alone", "pooled": "all rows in one place"}
MOST_ROWS = 500
"""Sites in the table: the worst, where there are more."""
Values = Mapping[str, float]


def scores(run: Run) -> str:
    """The primary metric of each site, the worst first; empty where none was scored."""
    name, final = facts.primary(run), facts.site_scores(run)
    if name is None or not final:
        return ""
    last, first = of_metric(final, name), of_metric(run.rounds[0].sites, name)
    beside = {kind: of_metric(run.rounds[0].baselines.get(kind, {}), name) for kind in BASELINES}
    beside = {kind: values for kind, values in beside.items() if values}
    titles = ["test rows", "at the start", "this run", *(BASELINES[kind] for kind in beside)]
    titles += ["gain over alone"] if "local" in beside else []
    columns = [*texts("site"), *numbers(*titles)]
    order = sorted(last, key=last.__getitem__, reverse=describe(name).best is min)
    rows = [_row(run, name, site, last, first, beside) for site in order[:MOST_ROWS]]
    means = [show(name, _mean(values)) for values in (first, last, *beside.values())]
    gains = [show_change(name, _mean(beside["local"]), _mean(last))] if "local" in beside else []
    rows.append(["mean", "", *means, *gains])
    title = f"{describe(name).title} at each site, of rows that no site trains on"
    return table(title, columns, rows, strong=True) + paragraph(_said(run, name, order, last, beside), "note")


def of_metric(sites: Mapping[str, Values], name: str) -> dict[str, float]:
    """Site -> its value of this metric."""
    return {site: values[name] for site, values in sites.items() if name in values}


def _row(
    run: Run, name: str, site: str, last: Values, first: Values, beside: Mapping[str, Values]
) -> list[str]:
    cells = [count(facts.test_rows(run, site)), show(name, first.get(site)), show(name, last[site])]
    cells += [show(name, values.get(site)) for values in beside.values()]
    alone = beside.get("local", {}).get(site)
    gain = [show_change(name, alone, last[site])] if "local" in beside else []
    return [facts.named(run, site), *cells, *gain]


def _mean(values: Values) -> float | None:
    return fmean(values.values()) if values else None


def _said(run: Run, name: str, order: list[str], last: Values, beside: Mapping[str, Values]) -> str:
    """Worst, spread, and who gains, in sentences."""
    spread = show_apart(name, max(last.values()) - min(last.values()))
    worst = f"{facts.named(run, order[0])}, {show(name, last[order[0]])}"
    text = f"Worst: {worst}; best and worst lie {spread} apart. "
    lacking = [c for c in facts.clients(run) if c not in last]
    if lacking:
        text += f"Without a score: {plural(len(lacking), 'site')}. "
    if alone := beside.get("local"):
        both = [site for site in last if site in alone]
        better = min if describe(name).best is min else max
        gain = sum(last[s] != alone[s] and better(last[s], alone[s]) == last[s] for s in both)
        lose = sum(last[s] != alone[s] and better(last[s], alone[s]) == alone[s] for s in both)
        text += f"Against training alone, {gain} of {plural(len(both), 'site')} gained and {lose} lost. "
    return text + _noise(run, name) + "Each site counts once in the mean; scores of few rows are uncertain."


def _noise(run: Run, name: str) -> str:
    """What privacy's noise does to these scores; empty without."""
    noise = mapping(facts.stated(run, "sites").get("noise"))
    if not noise:
        return ""
    by_site, of_mean = (mapping(noise.get(k)) for k in ("standard_errors", "standard_error_of_mean"))
    errors = [e for each in by_site.values() if (e := number(mapping(each).get(name))) is not None]
    if not errors:
        return "Made of counts with noise, for privacy. "
    most, mean = show_apart(name, max(errors)), show_apart(name, number(of_mean.get(name)))
    return f"Noised, for privacy: its standard error is up to {most} at a site, {mean} in their mean. "


def plots_of(run: Run, anchor: str) -> list[Plot]:
    """The sites' mean, worst and best by round."""
    name = facts.primary(run)
    if name is None:
        return []
    by_round = [(entry.number, list(of_metric(entry.sites, name).values())) for entry in run.rounds]
    scored = [(number, values) for number, values in by_round if values]
    ends: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "lowest": min, "highest": max}
    items = [
        Curve(label, [(number, of(values)) for number, values in scored], at)
        for at, (label, of) in enumerate(ends.items())
    ]
    title = f"{describe(name).title} over the sites, by round"
    span = Span("round", describe(name).title, partial(show, name), partial(show_tick, name))
    plot = curves(title, items, span, name=f"{anchor}-sites")
    return [plot] if plot else []
