"""Of each client what its site is called, and the rows of its own that it is scored on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedsb.common.printable import LONGEST_SITE, printable, site_name
from fedsb.common.seeding import numpy_generator
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.federation.partition import Parts
from fedsb.tasks import Row

FEWEST = 5
"""Rows that a score is of at least: a client whose share of rows is less holds out none, and has no score."""
SHARE = 0.1
"""Of a client's rows, where data.client_test is null."""


def site_names(config: RunConfig, parts: Parts, rows: Sequence[Row]) -> tuple[str, ...]:
    """A name for each client; none where neither the config gives them nor a column deals the rows."""
    dealt = config.federation.partition
    if config.federation.sites is not None:
        return tuple(config.federation.sites)
    if not rows or dealt.kind != "by-column" or config.privacy is not None:
        return ()
    values = [[str(rows[i][dealt.column]) for i in part] for part in parts]
    return _distinct([_of_values(list(dict.fromkeys(of_client))) for of_client in values])


def _of_values(values: Sequence[str]) -> str:
    """What a client of the rows with these values is called."""
    more = f" and {len(values) - 1} more" if len(values) > 1 else ""
    first = printable(values[0].strip() or "blank", LONGEST_SITE - 20)
    return f"{first}{more}"


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Each name once: those of several clients are numbered."""
    often, seen = Counter(name.lower() for name in names), Counter[str]()
    distinct = []
    for name in names:
        seen[name.lower()] += 1
        distinct.append(f"{name} ({seen[name.lower()]})" if often[name.lower()] > 1 else name)
    return tuple(distinct) if len(set(distinct)) == len(distinct) else ()


def hold_out(
    config: RunConfig, parts: Parts, labels: Sequence[str] | None, *, first: int = 0
) -> tuple[Parts, Parts]:
    """(training, test) indices of each client, both ascending; all are for training where clients are not
    scored.

    A client's draw depends on the seed, its number and its own rows alone, in their order. Of each label
    about the same share is drawn. With privacy it depends on how many rows there are and on nothing in them,
    or one row would decide which others train; and their number has two digits, since it is told.

    Args:
        labels: class of each row, where there are classes.
        first: the number of the first part's client.
    """
    if not config.scores_at_clients:
        return parts, [[] for _ in parts]
    labels = labels if config.privacy is None else None
    held = [_drawn(config, number, part, labels) for number, part in enumerate(parts, first)]
    kept = [sorted(set(part) - set(test)) for part, test in zip(parts, held, strict=True)]
    return kept, held


def _drawn(config: RunConfig, client: int, part: Sequence[int], labels: Sequence[str] | None) -> list[int]:
    size = round((config.data.client_test or SHARE) * len(part))
    if config.privacy is not None:
        unit = 10 ** max(len(str(size)) - 2, 0)
        size = size // unit * unit
    if size < FEWEST:
        return []
    rng = numpy_generator(config.seed, "client test", client)
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(part):
        groups.setdefault(labels[row] if labels is not None else "", []).append(place)
    shuffled = [rng.permutation(groups[label]).tolist() for label in sorted(groups)]
    return sorted(part[place] for place in _shares(shuffled, size))


def _shares(groups: Sequence[Sequence[int]], size: int) -> list[int]:
    """`size` of all: of each group its share, the rest of those that lost most by rounding."""
    total = sum(map(len, groups))
    exact = [size * len(group) / total for group in groups]
    counts = [int(share) for share in exact]
    for at in np.argsort([count - share for count, share in zip(counts, exact, strict=True)], kind="stable"):
        if sum(counts) < size:
            counts[at] += 1
    return [place for group, count in zip(groups, counts, strict=True) for place in group[:count]]


def score_notes(
    config: RunConfig, sites: Sequence[str], tests: Parts, *, at_nodes: bool = False
) -> list[str]:
    """What to say of clients that have no score, and of what test rows in one place do not see."""
    notes = []
    lacking = [site_name(sites, client) for client, rows in enumerate(tests) if not rows]
    if config.scores_at_clients and lacking:
        named = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        share = f"data.client_test, {config.data.client_test or SHARE:g} of its rows, is under {FEWEST}"
        why = (
            f"it held out no rows; {share}, or its node gives no scores (give_scores)" if at_nodes else share
        )
        notes.append(f"no score of its own has {named}: {why}")
    stays = method_of(config).stays
    if stays and not config.scores_at_clients:
        notes.append(
            f"what stays with clients ({', '.join(stays)}) is in no score: data.test scores the shared part "
            "alone; evaluation.at_clients: true scores each client's own model"
        )
    return notes
