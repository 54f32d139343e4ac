"""Epsilon over several runs on the same rows: of any one row, whichever client held it in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsb.privacy.accounting import GRID_OF_LOSSES, Mechanism, epsilon

Releases = Mapping[int | None, Sequence[Mechanism]]
"""Of one run: client -> what it released. None: every row had a part in it, or the clients are the unit."""


def epsilon_over_runs(runs: Sequence[Releases], delta: float, *, grid: float = GRID_OF_LOSSES) -> float:
    """An upper bound at delta; exact for one run, and where all clients of a run released alike.

    Who held a row may differ from run to run. Two bounds hold then, and the smaller is taken: releases that
    dominate those of every client of a run, composed; and the sum of each run's largest epsilon at a share of
    delta.

    Args:
        grid: as of `accounting.epsilon`.
    """
    runs = [run for run in runs if run]
    if all(len(_different(run)) == 1 for run in runs):
        return epsilon([m for run in runs for m in _different(run)[0]], delta, grid=grid)
    shares = sum(max(epsilon(own, delta / len(runs), grid=grid) for own in _different(run)) for run in runs)
    if len(runs) == 1:
        return shares
    dominating = [m for run in runs for m in _dominating(_different(run))]
    return min(epsilon(dominating, delta, grid=grid), shares)


def _different(run: Releases) -> list[tuple[Mechanism, ...]]:
    """What clients released, each kind of releases as one of all its steps, without repetitions."""
    return list(dict.fromkeys(_by_kind(own) for own in run.values()))


def _by_kind(own: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    steps: dict[tuple[float, float], int] = {}
    for m in own:
        kind = m.noise_multiplier, m.sampling_probability
        steps[kind] = steps.get(kind, 0) + m.steps
    return tuple(Mechanism(*kind, count) for kind, count in steps.items())


def _dominating(lists: Sequence[tuple[Mechanism, ...]]) -> list[Mechanism]:
    """Place by place the least noise, the most sampling, the most steps: no client's list costs more."""
    longest = max(map(len, lists))
    places = [[own[place] for own in lists if place < len(own)] for place in range(longest)]
    return [Mechanism(min(p.noise_multiplier for p in at), *_most(at)) for at in places]


def _most(at: Sequence[Mechanism]) -> tuple[float, int]:
    return max(m.sampling_probability for m in at), max(m.steps for m in at)
