"""What is known about each metric: its title, its kind, how a value of it is written."""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from fedsb.report.units import DASH, MINUS, THIN, decimal, percent


class Metric(NamedTuple):
    """`share` is shown in percent; `score` lies between -1 and 1; `loss` joins the loss plot."""

    title: str
    kind: Literal["share", "score", "loss", "value"]
    best: Callable[[Iterable[float]], float] | None = max  # None: not known which end is the good one


KNOWN = {
    "accuracy": Metric("Accuracy", "share"),
    "mean_accuracy": Metric("Mean accuracy", "share"),
    "exact_match": Metric("Exact match", "share"),
    "f1": Metric("F1 of the second class", "share"),
    "macro_f1": Metric("Macro F1", "share"),
    "matthews": Metric("Matthews correlation", "score"),
    "pearson": Metric("Pearson correlation", "score"),
    "spearman": Metric("Spearman correlation", "score"),
    "entity_f1": Metric("F1 of entities", "share"),
    "entity_precision": Metric("Precision of entities", "share"),
    "entity_recall": Metric("Recall of entities", "share"),
    "token_accuracy": Metric("Accuracy of tokens", "share"),
    "micro_f1": Metric("Micro F1", "share"),
    "rouge_l": Metric("ROUGE-L", "share"),
    "meteor": Metric("METEOR", "share"),
    "bleu": Metric("BLEU", "value"),
    "nist": Metric("NIST", "value"),
    "cider": Metric("CIDEr", "value"),
    "mse": Metric("Mean squared error", "value", min),
    "perplexity": Metric("Perplexity", "value", min),
    "loss": Metric("Loss", "loss", min),
}
PREFERRED = ("accuracy", "entity_f1", "micro_f1", "pearson", "exact_match", "perplexity", "loss")


def describe(name: str) -> Metric:
    """What is known of the metric; of a benchmark's, NAME_METRIC, what is known of METRIC, titled by NAME."""
    if name in KNOWN:
        return KNOWN[name]
    ends = [metric for metric in KNOWN if name.endswith(f"_{metric}") and metric != "loss"]
    if metric := max(ends, key=len, default=None):
        return KNOWN[metric]._replace(title=f"{name.removesuffix(f'_{metric}')}: {KNOWN[metric].title}")
    title = name.replace("_", " ")
    return Metric(title, "loss", min) if name.endswith("_loss") else Metric(title, "value", None)


def show(name: str, value: float | None) -> str:
    return percent(value) if describe(name).kind == "share" else decimal(value)


def show_tick(name: str, value: float) -> str:
    """As `show`, without the decimals that no tick needs."""
    return f"{100 * value + 0.0:.3g}{THIN}%" if describe(name).kind == "share" else decimal(value)


def show_change(name: str, before: float | None, after: float | None) -> str:
    """The change with its sign; shares change by points, which are hundredths."""
    if before is None or after is None:
        return DASH
    share = describe(name).kind == "share"
    change = 100 * (after - before) if share else after - before
    text = f"{change:+.1f}{THIN}points" if share else f"{'+' if change > 0 else ''}{decimal(change, 3)}"
    return text.replace("-", MINUS)


def show_apart(name: str, value: float | None) -> str:
    """A distance between values, or how far they spread: shares are points apart."""
    if value is None or not math.isfinite(value) or describe(name).kind != "share":
        return decimal(value)
    return f"{100 * value:.1f}{THIN}points"


def guess_primary(names: list[str]) -> str | None:
    """The metric to lead with when the run does not say."""
    return next((name for name in PREFERRED if name in names), names[0] if names else None)
