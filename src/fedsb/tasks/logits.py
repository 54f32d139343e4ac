"""Losses and scores of a task that has one row of logits for each example: of classes, labels or numbers."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.tasks.task import (
    Batch,
    Collate,
    Example,
    Measurement,
    Progress,
    batches_by_length,
    evaluating,
    length_of,
    model_logits,
)
from fedsb.tasks.totals import FARTHEST, SLACK, Sums, Totals, loss_fault


def losses(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """Each example's loss, see `losses_of_logits`."""
    return losses_of_logits(model_logits(model, batch), batch["labels"])


def losses_of_logits(logits: Float[Tensor, "batch labels"], labels: Tensor) -> Float[Tensor, " batch"]:
    """Cross-entropy for whole labels; for float labels the squared error, or with several for each example
    the mean of their binary cross-entropies. In fp32 whatever the model's dtype."""
    labels, logits = labels.to(logits.device), logits.float()
    if labels.dim() > 1:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels) ** 2
    return F.cross_entropy(logits, labels, reduction="none")


def measure(
    collate: Collate,
    scored: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    summed: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]] | None,
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch_size: int,
    generate: int | None = None,
    progress: Progress | None = None,
    shares: frozenset[str] = frozenset({"accuracy"}),
) -> list[Measurement]:
    """What a task that has one row of logits for each example measures: the loss, and `scored` of logits and
    labels; `summed` gives the sums of its totals, where it has any, of these and the losses."""
    if not examples:
        raise ValueError("expected at least one example to evaluate, got none")
    logits, labels = _logits_and_labels(collate, model, examples, batch_size, progress)
    each = losses_of_logits(logits, labels).double().numpy()

    def metrics(indices: np.ndarray) -> dict[str, float]:
        scores = scored(logits.numpy()[indices], labels.numpy()[indices])
        return {**scores, "loss": float(each[indices].mean())}

    given = logits.numpy(), labels.numpy()
    sums = {} if summed is None else summed(*given, each)
    return [Measurement(len(examples), metrics, shares, sums)]


def _logits_and_labels(
    collate: Collate,
    model: nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None,
) -> tuple[Float[Tensor, "examples labels"], Tensor]:
    """fp32 logits and labels on the CPU, in the order of the examples."""
    parts: list[tuple[Tensor, Tensor]] = []
    order: list[int] = []
    with evaluating(model):
        for indices in batches_by_length([length_of(example) for example in examples], batch_size):
            batch = collate([examples[i] for i in indices])
            parts.append((model_logits(model, batch).float().cpu(), batch["labels"].cpu()))
            order += indices
            if progress is not None:
                progress(len(order), len(examples))
    places = torch.tensor(order).argsort()
    logits, labels = (torch.cat(tensors)[places] for tensors in zip(*parts, strict=True))
    return logits, labels


# Classes


def class_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """As `scores_of_counts`, of predictions and labels."""
    return scores_of_counts(class_sums(logits, labels, np.zeros(0)))


def of_classes(size: int) -> Totals:
    """By class: how many examples are of it, were taken for it, and both; and the sum of the losses.

    With noise the counts alone: an example is one of its label, one of its prediction, and one right answer
    or none, so it moves all of them together by at most the square root of 3.
    """
    counts = dict.fromkeys(("labelled", "predicted", "right"), (size,))
    noised = Totals(
        counts,
        _noised_class_metrics,
        _noised_class_fault,
        sensitivity=math.sqrt(3),
        errors=lambda std, count: {"accuracy": std * math.sqrt(size) / count},
    )
    return Totals(counts | {"loss": ()}, _class_metrics, _class_fault, noised=noised)


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
    return loss_fault(sums)


def _noised_class_metrics(sums: Sums, count: int) -> dict[str, float]:
    """Accuracy is the noised sum over the count; the others are of the nearest counts that can be."""
    labelled, predicted = (_possible(sums[name], count) for name in ("labelled", "predicted"))
    right = np.clip(sums["right"], 0, np.minimum(labelled, predicted))
    scores = scores_of_counts({"labelled": labelled, "predicted": predicted, "right": right})
    accuracy = float(np.clip(sums["right"].sum() / count, 0, 1))
    return scores | {"accuracy": accuracy, "matthews": float(np.clip(scores["matthews"], -1, 1))}


def _possible(noised: np.ndarray, count: int) -> np.ndarray:
    """Counts from 0 on that add up to `count`, near the noised ones."""
    moved = noised + (count - noised.sum()) / len(noised)
    within = np.clip(moved, 0, count)
    return np.asarray(within * (count / within.sum()))


def _noised_class_fault(sums: Sums, count: int) -> str | None:
    """Noised counts may be negative and need not be whole numbers."""
    if any((np.abs(each) > FARTHEST).any() for each in sums.values()):
        return f"it has a count beyond {FARTHEST:.0e}, which is none of {count} rows with noise"
    return None


# Numbers


def correlations(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation, 0 where undefined (all predictions or all labels alike, or one
    example), and the mean squared error."""
    from scipy.stats import rankdata

    predictions, targets = logits[:, 0].astype(np.float64), labels.astype(np.float64)
    return {
        "pearson": _correlation(predictions, targets),
        "spearman": _correlation(rankdata(predictions), rankdata(targets)),
        "mse": float(np.mean((predictions - targets) ** 2)),
    }


def _correlation(predictions: np.ndarray, targets: np.ndarray) -> float:
    if not np.isfinite(predictions).all():
        return math.nan
    spread = len(predictions) > 1 and bool(np.ptp(predictions)) and bool(np.ptp(targets))
    return float(np.corrcoef(predictions, targets)[0, 1]) if spread else 0.0


def of_numbers() -> Totals:
    """Of predictions and targets: the means, the central second moments, and the squared errors' sum."""
    return Totals({"means": (2,), "moments": (3,), "loss": ()}, _number_metrics, _number_fault)


def number_sums(logits: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of `of_numbers`; logits are (examples, 1), and losses the squared errors."""
    both = np.stack([logits[:, 0], labels]).astype(np.float64)
    p, t = both - both.mean(axis=1, keepdims=True)
    moments = np.array([(p * p).sum(), (t * t).sum(), (p * t).sum()])
    return {"means": both.mean(axis=1), "moments": moments, "loss": np.sum(losses)}


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
    return loss_fault(sums)
