"""What a privacy curve allows somebody who guesses who was in: his best hits at a given rate of false alarms.

Of all tests between two neighbouring data sets with false positives a, true positives are at most
min over epsilon of delta(epsilon) + e^epsilon a and 1 - e^-epsilon (1 - delta(epsilon) - a) (Kairouz et al.
2015, arXiv 1311.0776; the whole curve gives the trade-off function of Dong et al. 2019, arXiv 1905.02383).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedsb.privacy.accounting import Mechanism, deltas

FALSE_POSITIVE_RATES = (0.001, 0.01)
EPSILONS = np.concatenate([[0.0], np.geomspace(0.005, 200.0, 250)])
"""At which the curve is asked; any set gives a bound."""


def best_true_positive_rates(
    mechanisms: Iterable[Mechanism], rates: Iterable[float] = FALSE_POSITIVE_RATES
) -> dict[str, float]:
    """By false-positive rate, as text, the largest true-positive rate that all these together allow.

    1 where nothing is known: without noise, or with next to none.
    """
    curve = deltas(mechanisms, EPSILONS)
    grown = np.exp(EPSILONS)
    best = {}
    for rate in rates:
        few = (curve + grown * rate).min()
        many = (1 - (1 - curve - rate) / grown).min()
        best[f"{rate:g}"] = float(min(1.0, few, many))
    return best


def in_words(best: Mapping[str, float], who: str) -> str:
    """A sentence for somebody who has to decide. who: of whom it is, such as `one example`."""
    guesses = [
        f"at most {percent(rate)} of those that were in (at {percent(float(wrong))} false alarms)"
        for wrong, rate in best.items()
    ]
    return (
        f"In odds: whoever knows all but whether {who} was in, and sees all of this, finds "
        f"{' or '.join(guesses)}; "
        "a blind guess finds as many as it has false alarms."
    )


def percent(share: float) -> str:
    """In three digits, upwards."""
    return f"{np.ceil(share * 1e4) / 1e2:.4g} %"
