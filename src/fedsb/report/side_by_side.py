"""Several runs side by side."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from statistics import mean, stdev

from fedsb.common.dotted import flat
from fedsb.report import facts
from fedsb.report.canvas import Plot
from fedsb.report.load import Run, number, whole
from fedsb.report.markup import numbers, paragraph, table, texts
from fedsb.report.metrics import describe, show, show_apart, show_change, show_tick
from fedsb.report.plots import Curve, Span, curves
from fedsb.report.units import DASH, count, decimal, duration, human_bytes, plural, short_name

NOT_TELLING = ("seed", "method.name")
MOST_DIFFERENCES = 3


def groups(runs: Sequence[Run]) -> list[str]:
    """A name for each run; runs that differ in the seed alone share it.

    It has a few of the differences, and as many more, or as much of their values, as tell it from others'.
    """
    apart = [_differences(run, runs) for run in runs]
    whole = [(facts.method(run), *map(str, each.items())) for run, each in zip(runs, apart, strict=True)]
    names = []
    for run, each, mine in zip(runs, apart, whole, strict=True):
        others = [other for other, theirs in enumerate(whole) if theirs != mine]
        for text in (short_name, str):
            called = [_called(runs[n], apart[n], text) for n in others]
            name = _telling(_called(run, each, text), called)
            if name not in called:
                break
        names.append(" · ".join(name))
    return names


def _called(run: Run, apart: Mapping[str, object], text: Callable[[object], str]) -> list[str]:
    return [facts.method(run), *(f"{_last(key)} {text(value)}" for key, value in apart.items())]


def _last(key: str) -> str:
    """Its last part, with the one before where that alone says nothing."""
    *before, last = key.split(".")
    return ".".join([*before[-1:], last]) if last in ("kind", "name", "path") else last


def _telling(name: list[str], others: Sequence[list[str]]) -> list[str]:
    """Its beginning, as long as it takes to tell it from all others."""
    lengths = range(1 + MOST_DIFFERENCES, len(name))
    return next((name[:n] for n in lengths if all(name[:n] != other[:n] for other in others)), name)


def labels(runs: Sequence[Run]) -> list[str]:
    """The names of the runs' folders; of those with one name, numbered."""
    names = [run.name for run in runs]
    return [f"{label} ({at + 1})" if names.count(label) > 1 else label for at, label in enumerate(names)]


def lead(runs: Sequence[Run]) -> str:
    """The best and the cheapest of the finished runs; empty if it cannot be told which is best."""
    name = _common_metric(runs)
    best = describe(name).best if name else None
    if name is None or best is None:
        return ""
    scored = {n: facts.final(run, name) for n, run in enumerate(runs) if run.summary is not None}
    finite = {n: value for n, value in scored.items() if value is not None and isfinite(value)}
    if not finite:
        return ""
    top = next(n for n, value in finite.items() if value == best(finite.values()))
    cheap = min(finite, key=lambda n: (facts.total_bytes(runs[n]), n != top))
    title, called = describe(name).title.lower(), labels(runs)
    best_run, cheapest_run = (
        f"{called[n]}, {show(name, finite[n])} with {human_bytes(facts.total_bytes(runs[n]))} of traffic."
        for n in (top, cheap)
    )
    if top == cheap:
        return f"Best {title} and least traffic: {best_run}"
    return f"Best {title}: {best_run} Least traffic: {cheapest_run}"


def overview(runs: Sequence[Run]) -> str:
    """One line per run; and one per group, with mean and spread, if seeds were repeated."""
    name = _common_metric(runs)
    title = describe(name).title.lower() if name else "metric"
    columns = texts("run", "settings") + numbers(f"{title}, base", "final", "change", "rounds", "all traffic")
    columns += numbers("sent per client", "parameters sent*", "ε", "time")
    names = zip(runs, labels(runs), groups(runs), strict=True)
    rows = [[label, *_row(run, f"{group}{_seed(run, runs)}", name)] for run, label, group in names]
    note = paragraph("* per client and round. All traffic counts up, down and what is sent once.", "note")
    return table("All runs", columns, rows) + note + _spread(runs, name)


def _seed(run: Run, runs: Sequence[Run]) -> str:
    """The run's seed, where the runs have several."""
    seeds = {facts.setting(each, "seed") for each in runs}
    return f" · seed {facts.setting(run, 'seed')}" if len(seeds) > 1 else ""


def figures(runs: Sequence[Run]) -> list[Plot]:
    name = _common_metric(runs)
    if name is None:
        return []
    names = groups(runs)
    order = list(dict.fromkeys(names))
    if len(order) in (1, len(runs)):  # one setting repeated, or none: each run by its folder
        names = order = labels(runs)
    group = [order.index(label) for label in names]  # runs that differ in the seed alone look alike
    plots = [_by_round(runs, names, group, name), _by_bytes(runs, names, group, name)]
    return [plot for plot in plots if plot]


def _by_round(runs: Sequence[Run], names: list[str], group: list[int], metric: str) -> Plot | None:
    items = [Curve(n, facts.curve(run, metric), g) for run, n, g in zip(runs, names, group, strict=True)]
    span = Span("round", describe(metric).title, partial(show, metric), partial(show_tick, metric))
    title, note = f"{describe(metric).title} by round", _missing(runs, metric)
    return curves(title, items, span, name="compare-rounds", note=note)


def _by_bytes(runs: Sequence[Run], names: list[str], group: list[int], metric: str) -> Plot | None:
    """Quality against everything sent so far. A point without traffic has no place on a logarithmic axis."""
    items = [Curve(n, _sent(run, metric), g) for run, n, g in zip(runs, names, group, strict=True)]
    x_title = "sent so far, up and down, all clients"
    span = Span(
        x_title, describe(metric).title, partial(show, metric), partial(show_tick, metric), human_bytes
    )
    note = "Further left is cheaper. The base model, before any traffic, is not drawn."
    return curves(f"{describe(metric).title} by traffic", items, span, name="compare-bytes", note=note)


def _sent(run: Run, metric: str) -> list[tuple[float, float]]:
    total = facts.running_total(run)
    return [(total[at], value) for at, value in facts.curve(run, metric) if at > 0 and total.get(at)]


def _missing(runs: Sequence[Run], metric: str) -> str:
    without = sum(not facts.curve(run, metric) for run in runs)
    return f"Not drawn: {plural(without, 'run')} without {describe(metric).title.lower()}." if without else ""


def _common_metric(runs: Sequence[Run]) -> str | None:
    """The primary metric of the most runs; on a tie, of the first."""
    primary = [name for run in runs if (name := facts.primary(run))]
    return max(primary, key=primary.count) if primary else None


def _row(run: Run, label: str, name: str | None) -> list[str]:
    before, after = (facts.base(run, name), facts.final(run, name)) if name else (None, None)
    scores = [show(name, before), show(name, after), show_change(name, before, after)] if name else [DASH] * 3
    done, planned = facts.rounds_done(run), facts.rounds_planned(run)
    rounds = str(done) if run.summary is not None else f"{done} of {planned or '?'}, unfinished"
    sizes = [human_bytes(facts.total_bytes(run)), human_bytes(facts.sent_per_client(run))]
    parameters = whole(facts.stated(run, "communication").get("upload_parameters_per_client_per_round"))
    epsilon = number(facts.stated(run, "privacy").get("epsilon"))
    cost = [*sizes, count(parameters), decimal(epsilon), duration(facts.seconds(run))]
    return [label, *scores, rounds, *cost]


def _spread(runs: Sequence[Run], name: str | None) -> str:
    """Mean and spread of each setting over its finished runs."""
    finished: dict[str, list[Run]] = {}
    for run, label in zip(runs, groups(runs), strict=True):
        finished.setdefault(label, []).extend([run] if run.summary is not None else [])
    if name is None or all(len(seeds) < 2 for seeds in finished.values()):
        return ""
    columns = texts("setting") + numbers("finished runs", "mean", "deviation", "mean traffic")
    rows = [_mean(label, seeds, name) for label, seeds in finished.items()]
    text = f"Final {describe(name).title.lower()} over repeated seeds:"
    return paragraph(text) + table("Repeated seeds", columns, rows)


def _mean(label: str, seeds: list[Run], name: str) -> list[str]:
    values = [value for run in seeds if (value := facts.final(run, name)) is not None]
    middle = show(name, mean(values)) if values else DASH
    spread = show_apart(name, stdev(values)) if len(values) > 1 else DASH
    traffic = human_bytes(mean(facts.total_bytes(run) for run in seeds)) if seeds else DASH
    return [label, str(len(seeds)), middle, spread, traffic]


def _differences(run: Run, runs: Sequence[Run]) -> dict[str, object]:
    """What sets this run's config apart from those of the same method, the seed aside."""
    settings = flat(run.config)
    peers = [flat(peer.config) for peer in runs if facts.method(peer) == facts.method(run)]
    keys = dict.fromkeys(key for peer in peers for key in peer if key not in NOT_TELLING)
    apart = [key for key in keys if any(peer.get(key) != settings.get(key) for peer in peers)]
    return {key: settings.get(key, DASH) for key in apart}
