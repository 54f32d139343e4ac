"""The tables of a comparison."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from fedsb.compare.intervals import CONFIDENCE, FEWEST_SEEDS, what_shows
from fedsb.compare.page.equal import Limit, equal_limits
from fedsb.compare.page.load import Compared, settings_apart
from fedsb.report.load import mapping, number, sequence, whole
from fedsb.report.markup import details, link, numbers, paragraph, table, texts, trial, yaml
from fedsb.report.metrics import describe, show
from fedsb.report.units import DASH, MINUS, THIN, count, decimal, duration, human_bytes, percent, plural

MOST_SEEDS = 8
APART = "≈"
"""Beside a difference that the seeds do not show to be one."""


def result(comparison: Compared) -> str:
    title = describe(comparison.metric).title.lower()
    columns = texts("method") + numbers(f"{title}, mean ± sd", f"against {_unbroken(comparison.baseline)}")
    routes = any(row.get("routing") for row in comparison.summary.values())
    columns += numbers("oracle†", "mean of experts†", "right expert†") if routes else []
    columns += numbers("per round and client*", "sent once", "total", "learning rate", "seeds")
    limits = equal_limits(comparison)
    columns += numbers(*(limit.title for limit in limits))
    columns += texts("not dominated")
    rows = [_row(comparison, name, row, routes, limits) for name, row in comparison.summary.items()]
    note = (
        "sd: sample standard deviation over the seeds. Differences are paired: seed by seed, then mean ± sd; "
        f"{APART} where the seeds do not tell the two apart. "
        "* up and down together, for each client that takes part. Total: all clients and rounds, and once."
    )
    routed = (
        " † Of a mixture, which is scored as its gate routes: with each row's own expert chosen for it, with "
        "the one adapter that is the mean of the experts, and the share of rows routed to their own."
    )
    return table("Result", columns, rows) + paragraph(note + (routed if routes else ""), "note")


def _row(
    comparison: Compared, name: str, row: dict[str, Any], routes: bool, limits: Sequence[Limit]
) -> list[str]:
    sizes = [human_bytes(number(row.get(key))) for key in ("bytes_per_round", "init_bytes", "total_bytes")]
    rate = f"{decimal(number(row.get('learning_rate')))}{' (edge)' if row.get('edge') else ''}"
    return [
        name,
        value(comparison.metric, number(row.get("mean")), number(row.get("std"))),
        DASH if name == comparison.baseline else _difference(comparison, row),
        *(_routing(comparison.metric, mapping(row.get("routing"))) if routes else []),
        *sizes,
        rate,
        count(whole(row.get("seeds"))),
        *(value(comparison.round_metric, limit.mean_of(comparison, name), None) for limit in limits),
        "●" if name in comparison.best else "",
    ]


def _routing(metric: str, routing: dict[str, Any]) -> list[str]:
    others = [show(metric, number(routing.get(kind))) for kind in ("oracle", "static")]
    return [*others, percent(number(routing.get("right")))]


def _difference(comparison: Compared, row: dict[str, Any]) -> str:
    apart = mapping(row.get("difference"))
    text = change(comparison.metric, number(apart.get("mean")), number(apart.get("std")))
    return text if apart.get("separable") or text == DASH else f"{text} {APART}"


def _interval(comparison: Compared, row: dict[str, Any]) -> str:
    """`−0.12 to +0.74 points`."""
    ends = [number(end) for end in sequence(mapping(row.get("difference")).get("interval"))]
    if len(ends) != 2:
        return DASH
    low, high = (change(comparison.metric, end, None) for end in ends)
    return f"{low.removesuffix(f'{THIN}points')} to {high}"


def _unbroken(name: str) -> str:
    """Not to be cut at its hyphens by a narrow column."""
    return name.replace("-", "\u2011")


def value(metric: str, middle: float | None, spread: float | None) -> str:
    """`83.45 ± 0.59 %`, or `2.970 ± 0.012`."""
    if middle is None:
        return DASH
    if describe(metric).kind == "share":
        both = f"{100 * middle:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")
        return f"{both}{THIN}%"
    return decimal(middle) + ("" if spread is None else f" ± {decimal(spread, 2)}")


def change(metric: str, middle: float | None, spread: float | None) -> str:
    """`+0.31 ± 0.20 points`, or `−0.012 ± 0.004`."""
    if middle is None:
        return DASH
    if describe(metric).kind == "share":
        both = f"{100 * middle + 0.0:+.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")
        return f"{both}{THIN}points".replace("-", MINUS)
    sign = "+" if middle > 0 else ""
    return f"{sign}{decimal(middle, 3)}" + ("" if spread is None else f" ± {decimal(spread, 2)}")


def differences(comparison: Compared) -> str:
    """One column per seed where they fit."""
    others = [name for name in comparison.summary if name != comparison.baseline]
    first = {run["seed"]: number(run.get("value")) for run in comparison.of(comparison.baseline)}
    if not others or not first:
        return ""
    seeds = sorted(first)[:MOST_SEEDS]
    columns = texts("method") + numbers(*(f"seed {seed}" for seed in seeds), "mean ± sd", "interval")
    rows = []
    for name in others:
        values = {run["seed"]: number(run.get("value")) for run in comparison.of(name)}
        each = [change(comparison.metric, _minus(values.get(seed), first[seed]), None) for seed in seeds]
        row = comparison.summary[name]
        rows.append([name, *each, _difference(comparison, row), _interval(comparison, row)])
    hidden = len(first) - len(seeds)
    note = f"{plural(hidden, 'more seed')} in the mean, not shown. " if hidden else ""
    note += (
        f"Intervals: paired t, {percent(CONFIDENCE, 0)} for all of them together (Bonferroni), from "
        f"{FEWEST_SEEDS} seeds on; {what_shows(len(first), len(others))}. {APART} zero lies in it, or there "
        "is none."
    )
    return table("Paired differences", columns, rows) + paragraph(note, "note")


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def tuning(comparison: Compared) -> str:
    """Every rate that was tried, with its value on the held-out rows."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for line in sequence(comparison.content.get("tuning")):
        trials.setdefault(str(mapping(line).get("method")), []).append(mapping(line))
    if not trials:
        return ""
    metric = str(next(iter(trials.values()))[0].get("metric", comparison.metric))
    title = f"{describe(metric).title.lower()} on the held-out rows, by rate"
    columns = texts("method", title) + numbers("chosen") + texts("")
    rows = []
    for name, lines in trials.items():
        chosen = next((decimal(number(t.get("learning_rate"))) for t in lines if t.get("chosen")), DASH)
        edge = "edge of the grid" if comparison.summary.get(name, {}).get("edge") else ""
        rows.append([name, Markup(" · ").join(_trial(metric, line) for line in lines), chosen, edge])
    text = "The best rate of the grid is used; of equal ones the smallest. Each rate links to its run."
    return paragraph(text) + table("Learning rates", columns, rows)


def _trial(metric: str, line: dict[str, Any]) -> Markup:
    rate, scored = decimal(number(line.get("learning_rate"))), number(line.get("value"))
    path, text = f"{line.get('run')}/report.html", "failed" if scored is None else show(metric, scored)
    return trial(rate, None if scored is None else path, text, line.get("chosen"))


def settings(comparison: Compared) -> str:
    """The config values in which the methods differ."""
    apart = settings_apart(comparison)
    if not apart:
        return ""
    rows = [[name, *(values.get(name, DASH) for values in apart.values())] for name in comparison.summary]
    return table("What sets the methods apart", texts("method", *apart), rows)


def runs(comparison: Compared) -> str:
    score = describe(comparison.metric).title.lower()
    columns = texts("run") + numbers(score, "total", "learning rate", "time") + texts("config", "page")
    return table("Every run", columns, [_run(comparison, run) for run in comparison.runs])


def _run(comparison: Compared, run: dict[str, Any]) -> list[str]:
    path = str(run.get("run"))
    return [
        f"{run.get('method')}, seed {run.get('seed')}",
        value(comparison.metric, number(run.get("value")), None),
        human_bytes(number(run.get("total_bytes"))),
        decimal(number(run.get("learning_rate"))),
        duration(number(run.get("seconds"))),
        link("config.yaml", f"{path}/config.yaml"),
        link("report.html", f"{path}/report.html"),
    ]


def config(comparison: Compared) -> str:
    text = "All runs share this config but for what is listed above, the seed and the learning rate."
    title = "config.yaml: giving it to fedsb compare repeats the comparison"
    return paragraph(text) + details(title, yaml(comparison.config_text))


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
