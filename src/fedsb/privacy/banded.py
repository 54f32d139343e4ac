"""Noise that is correlated over steps by a banded matrix, so that the sum of all steps so far has less of it.

With C lower triangular, Toeplitz and of b bands, the steps' noise is C^-1 z for independent z. What is
released is then post-processing of C g + z (Denisov et al. 2022, arXiv 2202.08312). A unit that takes part
at most once in any b steps moves C g in columns that do not overlap, each of length 1 at most; so its
privacy is that of z alone, once for each b steps (Choquette-Choo et al. 2023, arXiv 2306.08153): with cyclic
Poisson sampling, in which step t draws from the t mod b-th part of the units, it is that of ceil(T / b) steps
of independent noise that draw with b times the probability.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

MOST_ERROR = 1e150
"""In place of an error beyond all numbers, as of a matrix whose inverse grows from step to step."""
TRIED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of bands among which the best is chosen."""


def coefficients(bands: int, steps: int) -> np.ndarray:
    """The first column of C, of length 1, (bands,): that with the least error of all sums of steps so far.

    It starts from the square root of the matrix of ones, cut to its bands, which is nearly the best already.
    """
    from scipy.optimize import minimize

    start = np.ones(bands)
    for k in range(1, bands):
        start[k] = start[k - 1] * (2 * k - 1) / (2 * k)
    if bands == 1:
        return start

    def objective(rest: np.ndarray) -> float:
        return math.log(sum_error(_normed(np.concatenate([[1.0], rest])), steps))

    found = minimize(objective, start[1:], method="L-BFGS-B", options={"maxiter": 200})
    return min((_normed(start), _normed(np.concatenate([[1.0], found.x]))), key=lambda c: sum_error(c, steps))


def _normed(column: np.ndarray) -> np.ndarray:
    return column / np.linalg.norm(column)


def sum_error(column: np.ndarray, steps: int) -> float:
    """Root mean square error of the sums of the first 1, 2, ..., `steps` steps, of noise C^-1 z with z of
    1."""
    from scipy.signal import lfilter

    impulse = np.zeros(steps)
    impulse[0] = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.cumsum(lfilter([1.0], column, impulse))  # the first column of A C^-1
        squared = (np.arange(steps, 0, -1) * sums**2).sum() / steps
    return float(np.sqrt(squared)) if np.isfinite(squared) else MOST_ERROR


@dataclass
class BandedNoise:
    """The noise C^-1 z of one client's steps, in order: y_t = (z_t - sum_j c_j y_{t - j}) / c_0.

    Attributes:
        column: the first of C.
        step: of the noise that comes next.
    """

    column: Sequence[float]
    step: int = 0
    _before: deque[list[Tensor]] = field(default_factory=deque)

    def next(self, independent: list[Tensor]) -> list[Tensor]:
        """The step's noise, tensor by tensor, of independent draws of these shapes."""
        made = independent
        for coefficient, earlier in zip(self.column[1:], reversed(self._before), strict=False):
            made = [now - float(coefficient) * then for now, then in zip(made, earlier, strict=True)]
        made = [tensor / float(self.column[0]) for tensor in made]
        if len(self.column) > 1:
            self._before.append(made)
            while len(self._before) > len(self.column) - 1:
                self._before.popleft()
        self.step += 1
        return made


def chosen_column(
    steps: int, most: int, noise_of: Callable[[int], float], bands: int | None = None
) -> tuple[float, ...]:
    """The first column of C.

    Args:
        most: bands that the units allow: with more, a unit would be drawn in each of its steps.
        noise_of: bands -> the noise multiplier that the budget asks for.
        bands: how many; None: those of the least error of all sums of steps.
    """
    if bands is not None:
        return tuple(coefficients(bands, steps))
    tried = [b for b in TRIED if b <= min(most, steps)]
    columns = {b: coefficients(b, steps) for b in tried}
    best = min(tried, key=lambda b: noise_of(b) * sum_error(columns[b], steps))
    return tuple(columns[best])
