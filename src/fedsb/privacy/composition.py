"""Epsilon over several runs on the same rows: of any one row, whichever client held it in each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from fedsb.privacy.accounting import (
    GRID_OF_LOSSES,
    Mechanism,
    Selection,
    epsilon,
    merged,
    selected_epsilon,
)

Releases = Mapping[int | None, Sequence[Mechanism]]
"""What each client released in one run. None: every row had a part in it, or the clients are the unit."""


def renyi_over_runs(
    runs: Sequence[Releases],
    delta: float,
    selections: Sequence[tuple[Sequence[Releases], float]] = (),
) -> float:
    """The same by Renyi DP, of releases that dominate every client's.

    Args:
        selections: besides, runs of which the best was chosen and the others stay hidden, and how many there
            were on average, by a geometric draw.
    """
    chosen = [Selection(tuple(_dominating_runs(tried)), mean) for tried, mean in selections]
    return selected_epsilon(chosen, [m for run in runs for m in _of_one(run)], delta)


def _of_one(run: Releases) -> list[Mechanism]:
    return _dominating(_different(run)) if run else []


def _dominating_runs(runs: Sequence[Releases]) -> list[Mechanism]:
    """What no client of any of these runs released more than."""
    return _dominating(list(dict.fromkeys(kind for run in runs for kind in _different(run))))


def epsilon_over_runs(runs: Sequence[Releases], delta: float, *, grid: float = GRID_OF_LOSSES) -> float:
    """An upper bound of epsilon at delta; exact for one run, and where all clients of a run released alike.

    Who held a row may differ from run to run. Two bounds hold then, and the smaller is taken: releases that
    dominate those of every client of a run, composed; and the sum of each run's largest epsilon at a share of
    delta.

    Args:
        grid: as of `accounting.epsilon`.
    """
    runs = [run for run in runs if run]
    if all(len(_different(run)) == 1 for run in runs):
        return epsilon([m for run in runs for m in _different(run)[0]], delta, grid=grid)
    share = delta / len(runs)
    shares = sum(max(epsilon(kind, share, grid=grid) for kind in _different(run)) for run in runs)
    if len(runs) == 1:
        return shares
    dominating = [m for run in runs for m in _dominating(_different(run))]
    return min(epsilon(dominating, delta, grid=grid), shares)


def _different(run: Releases) -> list[tuple[Mechanism, ...]]:
    """What clients released, each kind of releases as one of all its steps, without repetitions."""
    return list(dict.fromkeys(map(merged, run.values())))


def _dominating(lists: Sequence[tuple[Mechanism, ...]]) -> list[Mechanism]:
    """Place by place the least noise, the most sampling, the most steps: no client's list costs more."""
    absent = Mechanism(math.inf, 0.0, 0)
    places = (zip(*column, strict=True) for column in zip_longest(*lists, fillvalue=absent))
    return [
        Mechanism(min(noises), max(probabilities), max(steps), any(discrete))
        for noises, probabilities, steps, discrete in places
    ]
