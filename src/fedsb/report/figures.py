"""Which plots one run gets."""

from collections import Counter
from functools import partial

from fedsb.report import facts
from fedsb.report.canvas import FAINT, Key, Plot, key, series
from fedsb.report.load import Run
from fedsb.report.metrics import describe, show, show_tick
from fedsb.report.plots import Box, Curve, Layer, Span, bytes_by_round, cell, curves, grid, stacked
from fedsb.report.units import decimal, human_bytes, percent, plural

MOST_CELLS = 20_000
MOST_CROSSED = 400  # beyond this the cells are too small for an x in them
MOST_LABELS = 8


def quality(run: Run, name: str) -> list[Plot]:
    """The primary metric, loss, the other shares and scores together, then every other metric by itself."""
    names = facts.metric_names(run)
    lead = [n for n in names[:1] if describe(n).kind != "loss"]
    scores = [n for n in names if describe(n).kind in ("share", "score") and n not in lead]
    others = [n for n in names if describe(n).kind == "value" and n not in lead]
    drawn = [_metric(run, n, name) for n in lead] + [_loss(run, name), _scores(run, scores, name)]
    drawn += [_metric(run, n, name) for n in others] + [_epsilon(run, name)]
    return [plot for plot in drawn if plot]


def traffic(run: Run, name: str) -> list[Plot]:
    after = [entry for entry in run.rounds if entry.number > 0]
    if not after or not facts.total_bytes(run):
        return []
    up, down = [entry.upload_bytes for entry in after], [entry.download_bytes for entry in after]
    bars = bytes_by_round([entry.number for entry in after], up, down, name=f"{name}-bytes")
    total = Curve("total", list(facts.running_total(run).items()), 3)
    span = Span("round", "sent so far", human_bytes, zero=True)
    once = facts.one_time_bytes(run)
    note = f"Starts with {human_bytes(once)} of one-time traffic." if once else ""
    line = curves("Traffic so far, up and down", [total], span, name=f"{name}-total", note=note)
    return [bars, line] if line else [bars]


def people(run: Run, name: str) -> list[Plot]:
    return [plot for plot in (_participation(run, name), _examples(run, name)) if plot]


def _metric(run: Run, metric: str, name: str) -> Plot | None:
    title = describe(metric).title
    items = [Curve(title, facts.curve(run, metric))]
    span = Span("round", title, partial(show, metric), partial(show_tick, metric))
    return curves(f"{title} by round", items, span, name=f"{name}-m-{metric}")


def _loss(run: Run, name: str) -> Plot | None:
    trained = [(entry.number, entry.train_loss) for entry in run.rounds if entry.train_loss is not None]
    losses = [metric for metric in facts.metric_names(run) if describe(metric).kind == "loss"]
    items = [Curve("training loss", trained, 0)]
    for at, metric in enumerate(losses, 1):
        title = "evaluation loss" if metric == "loss" else describe(metric).title
        items.append(Curve(title, facts.curve(run, metric), at))
    drawn = [item.label for item in items if item.points]
    title = f"{drawn[0].capitalize() if len(drawn) == 1 else 'Loss'} by round"
    return curves(title, items, Span("round", "loss", decimal), name=f"{name}-loss")


def _scores(run: Run, metrics: list[str], name: str) -> Plot | None:
    if len(metrics) == 1:
        return _metric(run, metrics[0], name)
    items = [Curve(describe(m).title, facts.curve(run, m), at) for at, m in enumerate(metrics, 1)]
    shares = all(describe(metric).kind == "share" for metric in metrics)
    span = Span(
        "round", "score", *((percent, lambda value: percent(value, 0)) if shares else (decimal, None))
    )
    return curves("Other metrics by round", items, span, name=f"{name}-scores")


def _epsilon(run: Run, name: str) -> Plot | None:
    spent = [(entry.number, entry.epsilon) for entry in run.rounds if entry.epsilon is not None]
    items = [Curve("ε", spent, 4)]
    return curves("Privacy spent, ε by round", items, Span("round", "ε", decimal), name=f"{name}-epsilon")


def _participation(run: Run, name: str) -> Plot | None:
    rows, after = facts.clients(run), [entry for entry in run.rounds if entry.number > 0]
    if not rows or not after or len(rows) * len(after) > MOST_CELLS:
        return None
    kinds: dict[str, list[Box]] = {"in": [], "out": [], "idle": []}
    for entry in after:
        rejected = {client for client, _ in entry.rejected}
        for at, client in enumerate(rows):
            state = "out" if client in rejected else "in" if client in entry.clients else "idle"
            kinds[state].append(cell(entry.number, at))
    names = [facts.named(run, client) for client in rows]
    return grid(
        "Who took part", names, [entry.number for entry in after], _states(kinds), name=f"{name}-grid"
    )


def _states(kinds: dict[str, list[Box]]) -> list[Layer]:
    crossed = sum(len(boxes) for boxes in kinds.values()) <= MOST_CROSSED
    styles = {
        "in": (key(0, "took part", "■"), series(0), False),
        "out": (key(1, "left out", "✖"), series(1), crossed),
        "idle": (Key("■", "faint", "not sampled"), FAINT, False),
    }
    return [Layer(*styles[kind][:2], boxes, styles[kind][2]) for kind, boxes in kinds.items() if boxes]


def _examples(run: Run, name: str) -> Plot | None:
    sizes, by_label = facts.examples(run), facts.labels(run)
    bars = sorted(set(sizes) | set(by_label), key=facts.natural)
    if not bars:
        return None
    names = [facts.named(run, bar) for bar in bars]
    if not by_label:
        whole = [("examples", [sizes[bar] for bar in bars])]
        return stacked("Examples per client", names, whole, name=f"{name}-data")
    counts = [by_label.get(bar, Counter()) for bar in bars]
    parts = [(label, [counter[label] for counter in counts]) for label in _leading(by_label)]
    unlisted = [counter.total() - sum(part[n] for _, part in parts) for n, counter in enumerate(counts)]
    if any(unlisted):
        number = len(set().union(*counts)) - len(parts)
        parts.append((plural(number, "other label"), unlisted))
    return stacked("Examples per client, by label", names, parts, name=f"{name}-data")


def _leading(by_label: dict[str, Counter[str]]) -> list[str]:
    """The labels that get a colour: all if they fit, else the most frequent."""
    total: Counter[str] = sum(by_label.values(), Counter())
    most = MOST_LABELS if len(total) <= MOST_LABELS else MOST_LABELS - 1
    return sorted(sorted(total, key=lambda label: (-total[label], label))[:most], key=facts.natural)
