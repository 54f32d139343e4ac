"""Sums over examples that scores can be made of: all that a client tells of the rows it is scored on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Sums = Mapping[str, np.ndarray]
SLACK = 1e-3
"""Relative, of numbers that travelled as fp32."""
FARTHEST = 1e9
"""Beyond it no noise of any use brings a count."""


@dataclass(frozen=True)
class Totals:
    """The sums of one task.

    Attributes:
        shapes: of each sum, by name, in the order in which they travel.
        metrics: (sums, how many examples they are over) -> scores.
        fault: (sums, how many examples) -> what cannot be so of any examples; None where all is well. The
            numbers are finite.
        sensitivity: the largest L2 change of all sums together if one example is blanked; None: unbounded, so
            that no noise covers them.
        noised: what leaves in place of these sums under privacy, with noise; None where nothing may.
        errors: (standard deviation of the noise on each sum, how many examples) -> the standard error that it
            gives to the scores of which that can be said.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metrics: Callable[[Sums, int], dict[str, float]]
    fault: Callable[[Sums, int], str | None]
    sensitivity: float | None = None
    noised: Totals | None = None
    errors: Callable[[float, int], dict[str, float]] | None = None


def loss_fault(sums: Sums) -> str | None:
    return "its sum of losses is less than none" if float(sums["loss"]) < 0 else None


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
    return loss_fault(sums)
