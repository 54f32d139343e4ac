"""The page of a comparison, from its folder alone: comparison.json, config.yaml and the run folders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from fedsb.errors import InputError
from fedsb.report import facts
from fedsb.report.canvas import Plot
from fedsb.report.front import Dot, front
from fedsb.report.load import Run, load_run, mapping, number, sequence, whole
from fedsb.report.markup import (
    Column,
    Html,
    details,
    link,
    pairs,
    paragraph,
    plain,
    plots,
    section,
    table,
    tag,
)
from fedsb.report.metrics import describe, show, show_tick
from fedsb.report.page import document
from fedsb.report.plots import Band, Curve, Span, curves
from fedsb.report.units import DASH, MINUS, THIN, count, decimal, duration, human_bytes, plural

BUDGET = (
    "federation",
    "training.epochs",
    "training.batch_size",
    "training.accumulation",
    "training.max_length",
)
MOST_BANDS = 4
MOST_SEEDS = 8


@dataclass(frozen=True)
class Compared:
    """A comparison's files as read. `loaded` has the run folder of each record, None if it is gone."""

    name: str
    content: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    loaded: dict[str, Run]

    @property
    def metric(self) -> str:
        return str(self.content.get("metric"))

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [mapping(run) for run in sequence(self.content.get("runs"))]

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        return {name: mapping(found) for name, found in mapping(self.content.get("summary")).items()}

    @property
    def best(self) -> list[str]:
        return [str(name) for name in sequence(self.content.get("pareto"))]

    @property
    def baseline(self) -> str:
        return str(self.content.get("baseline"))

    def of(self, method: str) -> list[dict[str, Any]]:
        return [run for run in self.runs if run.get("method") == method]

    def folders(self, method: str) -> list[Run]:
        return [
            self.loaded[str(run.get("run"))] for run in self.of(method) if str(run.get("run")) in self.loaded
        ]


def comparison_page(folder: Path) -> str:
    """The whole HTML document.

    Raises InputError if the folder holds no comparison.
    """
    found = load_comparison(folder)
    parts = [_header(found), *(paragraph(text, "notice") for text in notices(found))]
    parts += [section("result", 2, "Result", _table(found), _figures(found))]
    for anchor, title, body in (
        ("differences", f"Seed by seed, against {found.baseline}", _differences(found)),
        ("tuning", "Learning rates", _tuning(found)),
        ("settings", "What sets the methods apart", _settings(found)),
        ("runs", "Every run", _runs(found)),
        ("config", "Configuration", _config(found)),
    ):
        parts += [section(anchor, 2, title, body)] if body else []
    return document(_title(found), "".join(parts))


def load_comparison(folder: Path) -> Compared:
    try:
        content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder}: expected a comparison, found: {error}") from error
    paths = [str(mapping(run).get("run")) for run in sequence(content.get("runs"))]
    loaded = {path: load_run(folder / path) for path in paths}
    return Compared(folder.resolve().name, content, mapping(config), text, loaded)


# What the page says first


def _title(found: Compared) -> str:
    names = list(found.summary)
    if len(names) == 1:
        return f"{names[0]}, over seeds"
    return (
        f"{', '.join(names[:-1])} and {names[-1]} compared"
        if len(names) < 4
        else f"{len(names)} methods compared"
    )


def _header(found: Compared) -> str:
    eyebrow = paragraph(f"fedsb comparison · {found.name}", "eyebrow")
    heading = tag("h1", plain(_title(found)))
    return tag("header", eyebrow, heading, paragraph(lead(found), "lead"), pairs(_setup(found), "setup"))


def lead(found: Compared) -> str:
    """What was compared on what, how rates were chosen, who is not dominated."""
    title, seeds = describe(found.metric).title, sorted({run["seed"] for run in found.runs})
    better = "" if found.content.get("higher_is_better", True) else ", where less is better"
    what = {key: _last_part(_at(found.config, key)) for key in ("model.path", "data.train", "data.test")}
    said = [
        f"{title} of {plural(len(found.summary), 'method')} on {what['data.test']}{better}, with "
        f"{what['model.path']} fine-tuned on {what['data.train']}: "
        f"{_plural_of(found, 'federation.rounds', 'round')}, "
        f"{_plural_of(found, 'federation.clients', 'client')}, {plural(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds[:10]))}{', ...' if len(seeds) > 10 else ''}). "
        "Under one seed every method has the same data, partition and batches."
    ]
    return " ".join([*said, _how_tuned(found), _who_is_best(found)])


def _plural_of(found: Compared, dotted: str, word: str) -> str:
    value = whole(_at(found.config, dotted))
    return f"an unknown number of {word}s" if value is None else plural(value, word)


def _how_tuned(found: Compared) -> str:
    held, seed = mapping(found.content.get("split")), mapping(found.content.get("split")).get("seed")
    tuned = [name for name, row in found.summary.items() if row.get("tuned")]
    if not tuned:
        return "Learning rates were given, not tuned."
    rest = "" if len(tuned) == len(found.summary) else f" for {_listed(tuned)}; the others' rates were given"
    return (
        f"Learning rates were chosen on {count(number(held.get('validation')))} training rows held out for "
        f"that (seed {seed}){rest}; the test data chose nothing."
    )


def _who_is_best(found: Compared) -> str:
    if len(found.summary) < 2 or not found.best:
        return ""
    if len(found.best) == 1:
        return f"{found.best[0]} dominates: no other method is better or cheaper."
    return f"Not dominated, no other method being both better and cheaper: {_listed(found.best)}."


def _setup(found: Compared) -> list[tuple[str, str]]:
    asked = {
        "model": "model.path",
        "training rows": "data.limit.train",
        "partition": "federation.partition.kind",
        "optimizer": "training.optimizer",
        "batch": "training.batch_size",
    }
    values = [(name, _at(found.config, dotted)) for name, dotted in asked.items()]
    return [(name, _last_part(value)) for name, value in values if value is not None]


def _last_part(value: object) -> str:
    """Of an absolute path its last part: the rest is in the config below."""
    text = str(value)
    return Path(text).name if text.startswith("/") else text


def notices(found: Compared) -> list[str]:
    """What a reader must know before believing the table."""
    said = []
    edge = [name for name, row in found.summary.items() if row.get("edge")]
    if edge:
        said.append(
            f"The learning rate of {_listed(edge)} is the smallest or largest that was tried: a better one "
            "may lie beyond. Widen compare.learning_rates."
        )
    unequal = sorted({key for key in _apart(found) if key.startswith(BUDGET)})
    if unequal:
        said.append(
            f"The methods differ in {_listed(unequal)}: partition, batches or budget are not the same."
        )
    if len({whole(row.get("seeds")) for row in found.summary.values()}) > 1:
        said.append("Not every method has every seed: compare the differences seed by seed, not the means.")
    for failure in sequence(found.content.get("failed")):
        said.append(f"Failed and left out: {mapping(failure).get('run')}: {mapping(failure).get('problem')}")
    return said


# The table


def _table(found: Compared) -> str:
    title = describe(found.metric).title.lower()
    columns = [
        Column("method", False),
        Column(f"{title}, mean ± sd"),
        Column(f"against {_unbroken(found.baseline)}"),
    ]
    columns += [
        Column("per round and client*"),
        Column("sent once"),
        Column("total"),
        Column("learning rate"),
    ]
    columns += [Column("seeds"), Column("not dominated", False)]
    rows = [_row(found, name, row) for name, row in found.summary.items()]
    note = (
        "sd: sample standard deviation over the seeds. Differences are paired: seed by seed, then mean ± sd. "
        "* up and down together, for each client that takes part. Total: all clients and rounds, and once."
    )
    return table("Result", columns, rows) + paragraph(note, "note")


def _row(found: Compared, name: str, row: dict[str, Any]) -> list[str]:
    apart = mapping(row.get("difference"))
    difference = (
        DASH
        if name == found.baseline
        else change(found.metric, number(apart.get("mean")), number(apart.get("std")))
    )
    sizes = [human_bytes(number(row.get(key))) for key in ("bytes_per_round", "init_bytes", "total_bytes")]
    rate = f"{decimal(number(row.get('learning_rate')))}{' (edge)' if row.get('edge') else ''}"
    mark = "●" if name in found.best else ""
    seeds = count(whole(row.get("seeds")))
    return [
        name,
        value(found.metric, number(row.get("mean")), number(row.get("std"))),
        difference,
        *sizes,
        rate,
        seeds,
        mark,
    ]


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


# The plots


def _figures(found: Compared) -> str:
    by_bytes, by_round = _by_bytes(found), _by_round(found)
    first = tag("div", plots([by_bytes]), class_="wide") if by_bytes else ""
    return first + (plots([by_round]) if by_round else "")


def _by_bytes(found: Compared) -> Plot | None:
    dots = [_dot(found, name, row) for name, row in found.summary.items()]
    note = (
        "Further left is cheaper. Large points are means over the seeds, bars one standard deviation, faint "
        "points the seeds. The line joins what no other method beats in both."
    )
    title = f"{describe(found.metric).title} by traffic"
    return front(title, dots, _show(found.metric), _tick(found.metric), name="comparison-bytes", note=note)


def _dot(found: Compared, name: str, row: dict[str, Any]) -> Dot:
    pairs_ = [(number(run.get("total_bytes")), number(run.get("value"))) for run in found.of(name)]
    seeds = [(x, y) for x, y in pairs_ if x and y is not None] if len(pairs_) > 1 else []
    middle, cost = number(row.get("mean")), number(row.get("total_bytes"))
    quality = float("nan") if middle is None else middle
    return Dot(name, cost or 0.0, quality, number(row.get("std")), seeds, name in found.best)


def _show(metric: str) -> Any:
    return lambda value: show(metric, value)


def _tick(metric: str) -> Any:
    return lambda value: show_tick(metric, value)


def _by_round(found: Compared) -> Plot | None:
    """Means over the seeds; the deviation as a band while there are few methods."""
    names = list(found.summary)
    each = {name: _means(found, name) for name in names}
    first = 0 if all(len(points) < 3 for points in each.values()) else 1
    items = [Curve(n, [(x, m) for x, m, _ in each[n] if x >= first], at) for at, n in enumerate(names)]
    banded = len(names) <= MOST_BANDS
    bands = [
        Band([(x, m - s, m + s) for x, m, s in each[n] if x >= first and s is not None], at)
        for at, n in enumerate(names)
    ]
    note = "Means over the seeds; bands are one standard deviation." if banded else "Means over the seeds."
    base = _base(found)
    if first and base is not None:
        note += f" Round 0, the model before any training, is not drawn: {show(found.metric, base)}."
    span = Span("round", _show(found.metric), _tick(found.metric))
    shown = [band for band in bands if band.points] if banded else []
    title = f"{describe(found.metric).title} by round"
    return curves(title, items, span, name="comparison-rounds", note=note, bands=shown)


def _means(found: Compared, name: str) -> list[tuple[float, float, float | None]]:
    """(round, mean, deviation) over the rounds that every seed's run has."""
    lines = [dict(facts.curve(run, found.metric)) for run in found.folders(name)]
    common = sorted(set.intersection(*map(set, lines))) if lines else []
    values = {at: [line[at] for line in lines] for at in common}
    return [(at, mean(v), stdev(v) if len(v) > 1 else None) for at, v in values.items()]


def _base(found: Compared) -> float | None:
    values = [b for run in found.runs if (b := number(run.get("base"))) is not None]
    return mean(values) if values else None


# The other tables


def _differences(found: Compared) -> str:
    """One column per seed where they fit."""
    others = [name for name in found.summary if name != found.baseline]
    first = {run["seed"]: number(run.get("value")) for run in found.of(found.baseline)}
    if not others or not first:
        return ""
    seeds = sorted(first)[:MOST_SEEDS]
    columns = [Column("method", False), *(Column(f"seed {seed}") for seed in seeds), Column("mean ± sd")]
    rows = []
    for name in others:
        own = {run["seed"]: number(run.get("value")) for run in found.of(name)}
        each = [change(found.metric, _minus(own.get(seed), first[seed]), None) for seed in seeds]
        apart = mapping(found.summary[name].get("difference"))
        rows.append([name, *each, change(found.metric, number(apart.get("mean")), number(apart.get("std")))])
    hidden = len(first) - len(seeds)
    note = f"{plural(hidden, 'more seed')} in the mean, not shown." if hidden else ""
    return table("Paired differences", columns, rows) + (paragraph(note, "note") if note else "")


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _tuning(found: Compared) -> str:
    """Every rate that was tried, with its value on the held-out rows."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for line in sequence(found.content.get("tuning")):
        trials.setdefault(str(mapping(line).get("method")), []).append(mapping(line))
    if not trials:
        return ""
    title = f"{describe(found.metric).title.lower()} on the held-out rows, by rate"
    columns = [Column("method", False), Column(title, False), Column("chosen"), Column("", False)]
    rows = []
    for name, lines in trials.items():
        chosen = next((decimal(number(t.get("learning_rate"))) for t in lines if t.get("chosen")), DASH)
        edge = "edge of the grid" if found.summary.get(name, {}).get("edge") else ""
        rows.append([name, Html(" · ".join(_trial(found.metric, trial) for trial in lines)), chosen, edge])
    text = "The best rate of the grid is used; of equal ones the smallest. Each rate links to its run."
    return paragraph(text) + table("Learning rates", columns, rows)


def _trial(metric: str, trial: dict[str, Any]) -> str:
    rate, scored = decimal(number(trial.get("learning_rate"))), number(trial.get("value"))
    said = "failed" if scored is None else show(metric, scored)
    text = link(rate, f"{trial.get('run')}/report.html") if scored is not None else plain(rate)
    inner = f"{text}:&nbsp;{plain(said)}"
    return tag("span", tag("strong", inner) if trial.get("chosen") else inner, class_="trial")


def _settings(found: Compared) -> str:
    """The config values in which the methods differ."""
    apart = _apart(found)
    if not apart:
        return ""
    keys = list(apart)
    columns = [Column("method", False), *(Column(key, False) for key in keys)]
    rows = [[name, *(apart[key].get(name, DASH) for key in keys)] for name in found.summary]
    return table("What sets the methods apart", columns, rows)


def _apart(found: Compared) -> dict[str, dict[str, str]]:
    """Dotted key -> method -> value, for keys whose value is not the same in all of them."""
    flat = {name: _flat(held[0].config) for name in found.summary if (held := found.folders(name))}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    told = {
        key: {name: values.get(key, DASH) for name, values in flat.items()} for key in keys if key != "seed"
    }
    return {key: values for key, values in told.items() if len(set(values.values())) > 1}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, item in values.items():
        inner = mapping(item)
        found |= (
            _flat(inner, f"{prefix}{key}.")
            if inner
            else {f"{prefix}{key}": DASH if item is None else str(item)}
        )
    return found


def _runs(found: Compared) -> str:
    columns = [
        Column("run", False),
        Column(describe(found.metric).title.lower()),
        Column("total"),
        Column("learning rate"),
    ]
    columns += [Column("time"), Column("config", False), Column("page", False)]
    rows = [_run(found, run) for run in found.runs]
    return table("Every run", columns, rows)


def _run(found: Compared, run: dict[str, Any]) -> list[str]:
    path = str(run.get("run"))
    return [
        f"{run.get('method')}, seed {run.get('seed')}",
        value(found.metric, number(run.get("value")), None),
        human_bytes(number(run.get("total_bytes"))),
        decimal(number(run.get("learning_rate"))),
        duration(number(run.get("seconds"))),
        link("config.yaml", f"{path}/config.yaml"),
        link("report.html", f"{path}/report.html"),
    ]


def _config(found: Compared) -> str:
    text = tag(
        "pre", tag("code", plain(found.config_text)), tabindex="0", aria_label="config.yaml", role="region"
    )
    again = paragraph(
        "All runs share this config but for what is listed above, the seed and the learning rate."
    )
    return again + details("config.yaml: giving it to fedsb compare repeats the comparison", text)


def _at(values: object, dotted: str) -> Any:
    for key in dotted.split("."):
        values = mapping(values).get(key)
    return values


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
