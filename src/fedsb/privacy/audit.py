"""What one run proves about epsilon: guesses which of many examples, each put in by a fair coin, were in it.

Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846, theorem 5.2): if the run is (epsilon, delta)-private, the
right ones of r guesses are hardly more than r coins of probability e^epsilon / (1 + e^epsilon) give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of all examples that are guessed, the surest first."""
MOST_EPSILON = 64.0
TOLERANCE = 1e-3


def log_odds(seen: Sequence[np.ndarray], probability: float, noise_multiplier: float) -> np.ndarray:
    """Each canary's log odds of having been in, from what each step's noised sum is along it, in clip norms.

    A step without it is N(0, z^2), one with it in the sample N(1, z^2): the ratio is that of the densities.
    """
    odds = np.zeros_like(seen[0])
    for x in seen:
        ratio = np.clip((x - 0.5) / noise_multiplier**2, -500, 500)
        odds += np.log(1 - probability + probability * np.exp(ratio))
    return odds


def log_odds_among(
    seen: Sequence[tuple[np.ndarray, np.ndarray]], probability: float, noise_multiplier: float
) -> np.ndarray:
    """The same of canaries that are in each other's way: the others are as likely as before anything was
    seen, and their sum is taken for a Gaussian.

    Args:
        seen: of each step, the noised sum along every canary's clipped gradient g, and the products g g'.
    """
    prior, noise = probability / 2, noise_multiplier
    spread, odds = prior * (1 - prior), np.zeros(len(seen[0][0]))
    for along, gram in seen:
        rest = np.linalg.inv(noise**2 / spread * np.eye(len(gram)) + gram)
        signal = np.diag(gram - gram @ rest @ gram) / noise**2
        own = 1 - spread * signal  # takes a canary's own part out of the spread again
        centred = along - prior * gram.sum(1)
        score = ((centred - gram @ (rest @ centred)) / noise**2 + prior * signal) / own
        ratio = np.clip(score - signal / own / 2, -500, 500)
        odds += np.log(1 - probability + probability * np.exp(ratio))
    return odds


def epsilon_at_least(
    log_odds: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    delta: float,
    *,
    confidence: float = 0.95,
) -> float:
    """A lower bound of epsilon at this confidence, 0 if nothing is proven.

    Of all `SHARES` the best counts, each tested at its part of the risk.

    Args:
        log_odds: of each example's having been in, as whoever saw the run thinks; what is guessed is its
            sign, and how sure the guess is, its size.
    """
    odds, risk = np.asarray(log_odds, float), (1 - confidence) / len(SHARES)
    right = ((odds > 0) == np.asarray(included, bool))[np.argsort(-np.abs(odds))]
    guesses = {max(1, round(share * len(right))) for share in SHARES}
    return max(_bound(len(right), count, int(right[:count].sum()), delta, risk) for count in guesses)


def _bound(examples: int, guesses: int, right: int, delta: float, risk: float) -> float:
    """The least epsilon that is not refuted."""
    low, high = 0.0, MOST_EPSILON
    if chance(examples, guesses, right, low, delta) > risk:
        return 0.0
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        refuted = chance(examples, guesses, right, middle, delta) <= risk
        low, high = (middle, high) if refuted else (low, middle)
    return low


def chance(examples: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest chance of so many right guesses under (epsilon, delta)-privacy."""
    from scipy.stats import binom

    share = 1 / (1 + math.exp(-epsilon))
    fewer = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, share))  # P(right - i <= W < right)
    spread = float((fewer / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, float(binom.sf(right - 1, guesses, share)) + 2 * examples * delta * spread)
