"""Sums over examples that scores can be made of: all that a client tells of the rows it is scored on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Sums = Mapping[str, np.ndarray]
SLACK = 1e-3
"""Relative, of numbers that travelled as fp32."""


@dataclass(frozen=True)
class Totals:
    """The sums of one task.

    Attributes:
        shapes: of each sum, by name, in the order in which they travel.
        metrics: (sums, how many examples they are over) -> scores.
        fault: (sums, how many examples) -> what cannot be so of any examples; None where all is well. The
            numbers are finite.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metrics: Callable[[Sums, int], dict[str, float]]
    fault: Callable[[Sums, int], str | None]


def of_classes(size: int) -> Totals:
    """By class: how many examples are of it, were taken for it, and both; and the sum of the losses."""
    counts = dict.fromkeys(("labelled", "predicted", "right"), (size,))
    return Totals(counts | {"loss": ()}, _class_metrics, _class_fault)


def class_sums(logits: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of `of_classes`; logits are (examples, classes)."""
    size, predicted = logits.shape[1], logits.argmax(axis=-1)
    count = [np.bincount(of, minlength=size) for of in (labels, predicted, labels[labels == predicted])]
    named = dict(zip(("labelled", "predicted", "right"), count, strict=True))
    return {name: value.astype(np.float64) for name, value in named.items()} | {"loss": np.sum(losses)}


def scores_of_counts(sums: Sums) -> dict[str, float]:
    """macro_f1 is over the classes that occur as label or prediction, f1 that of the second of two classes;
    0 where undefined."""
    right, of_label, predicted = (sums[name] for name in ("right", "labelled", "predicted"))
    total, size = of_label.sum(), len(right)
    occurs = of_label + predicted > 0
    f1 = np.divide(2 * right, of_label + predicted, out=np.zeros(size), where=occurs)
    scores = {
        "accuracy": float(right.sum() / total),
        "macro_f1": float(f1[occurs].mean()),
        "matthews": _matthews(right.sum(), total, of_label, predicted),
    }
    return scores | ({"f1": float(f1[1])} if size == 2 else {})


def _matthews(right: float, total: float, of_label: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004)."""
    spread = (total**2 - (of_label**2).sum()) * (total**2 - (predicted**2).sum())
    return float((right * total - (of_label * predicted).sum()) / math.sqrt(spread)) if spread > 0 else 0.0


def _class_metrics(sums: Sums, count: int) -> dict[str, float]:
    return {**scores_of_counts(sums), "loss": float(sums["loss"]) / count}


def _class_fault(sums: Sums, count: int) -> str | None:
    labelled, predicted, right = (sums[name] for name in ("labelled", "predicted", "right"))
    each = np.concatenate([labelled, predicted, right])
    if (each < 0).any() or (each != np.round(each)).any():
        return "its counts are not all whole numbers from 0 on"
    if labelled.sum() != count or predicted.sum() != count:
        return f"its counts are not of {count} rows"
    if (right > np.minimum(labelled, predicted)).any():
        return "it counts more right answers of a class than there can be"
    return _loss_fault(sums)


def _loss_fault(sums: Sums) -> str | None:
    return "its sum of losses is less than none" if float(sums["loss"]) < 0 else None


def of_numbers() -> Totals:
    """Of predictions and targets: the means, the central second moments, and the squared errors' sum."""
    return Totals({"means": (2,), "moments": (3,), "loss": ()}, _number_metrics, _number_fault)


def number_sums(predictions: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of `of_numbers`."""
    both = np.stack([predictions, targets]).astype(np.float64)
    p, t = both - both.mean(axis=1, keepdims=True)
    moments = np.array([(p * p).sum(), (t * t).sum(), (p * t).sum()])
    return {"means": both.mean(axis=1), "moments": moments, "loss": ((both[0] - both[1]) ** 2).sum()}


def _number_metrics(sums: Sums, count: int) -> dict[str, float]:
    """Without a correlation of ranks, which no sums have."""
    of_p, of_t, of_both = sums["moments"].tolist()
    error = float(sums["loss"]) / count
    pearson = of_both / math.sqrt(of_p * of_t) if of_p * of_t > 0 else 0.0
    return {"pearson": max(-1.0, min(1.0, pearson)), "mse": error, "loss": error}


def _number_fault(sums: Sums, count: int) -> str | None:
    of_p, of_t, of_both = sums["moments"].tolist()
    if of_p < 0 or of_t < 0 or not abs(of_both) <= math.sqrt(of_p * of_t) * (1 + SLACK) + SLACK:
        return "its second moments are of no numbers"
    return _loss_fault(sums)


def of_responses() -> Totals:
    """Negative log-likelihood and tokens of the responses; how many were asked for, and given as they are."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("loss", "tokens", "asked", "exact"), ())
    return Totals(shapes, _response_metrics, _response_fault)


def _response_metrics(sums: Sums, count: int) -> dict[str, float]:
    loss, tokens, asked, exact = (float(sums[name]) for name in ("loss", "tokens", "asked", "exact"))
    each = loss / max(tokens, 1.0)
    scores = {"loss": each, "perplexity": math.exp(each) if each < 700 else math.inf}
    return scores | ({"exact_match": exact / asked} if asked else {})


def _response_fault(sums: Sums, count: int) -> str | None:
    tokens, asked, exact = (float(sums[name]) for name in ("tokens", "asked", "exact"))
    if not (0 <= exact <= asked <= count and tokens >= 0):
        return f"its counts are not of {count} rows"
    return _loss_fault(sums)
