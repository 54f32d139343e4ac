"""A rank for each layer from the spectrum of the estimated first update, at the numbers of equal ranks.

A core of rank k has heads * k^2 numbers, which travel in every round: the next rank of a layer costs
heads * (2 k + 1) numbers and holds the energy (squared singular values) of its next `heads` directions. Ranks
are dealt one at a time, each to the layer that gains most for a number, until layers * heads * rank^2 numbers
are used up; then a rank goes from one layer to another for as long as that gains and fits.

A gain is a share of the energy that its layer would hold at equal ranks, so that every layer counts alike
whatever its size: with the rule sign a layer's update has the norm sqrt(out * in), with raw its gradient's,
and neither says how many directions it needs. A layer whose spectrum falls slowly gets ranks of one whose
first directions hold nearly all. That ranks go where they explain most variance, up to twice the mean, is
EVA's idea (Paischer et al. 2024, arXiv 2410.07170), there of activations and with ranks of one price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.adapter.bases import cut_to_rank
from fedsb.federation.start.settings import Start
from fedsb.methods.method import Shape

MOST, LEAST = 2, 4
"""A layer's rank is at most MOST times the equal one, and at least the LEAST-th part of it."""
SMALLEST = 1e-9
"""A gain worth a change: a share of a layer's energy."""


def widest_rank(shape: Shape, rank: int, heads: int) -> int:
    """The largest rank that a layer of this shape may get where `rank` is the equal one."""
    return min(MOST * rank, min(shape) // heads)


def fewest(rank: int) -> int:
    """The smallest rank that a layer may get."""
    return max(1, rank // LEAST)


def most_basis_numbers(shapes: Sequence[Shape], rank: int, heads: int) -> int:
    """The most numbers that all layers' bases can have: sum (out + in) r_l heads under sum r_l^2 = L rank^2,
    by Cauchy and Schwarz.

    >>> most_basis_numbers([Shape(3, 5), Shape(4, 4)], 2, 1)
    32
    """
    return heads * isqrt(len(shapes) * rank**2 * sum(sum(shape) ** 2 for shape in shapes))


def directions_sent(start: Start) -> int:
    """How many directions of its gradient a contributor sends: as many as the widest layer may get."""
    return start.heads * start.rank * (MOST if start.ranks == "spectrum" else 1)


def directions_kept(shape: Shape, start: Start) -> int:
    """The rank, of one head, at which a layer's update is cut at first."""
    return widest_rank(shape, start.rank, start.heads) if start.ranks == "spectrum" else start.rank


def at_chosen_ranks(found: Mapping[str, Factors], start: Start) -> Mapping[str, Factors]:
    """Factors of updates, R = diag(S) as from `bases_from_update`, at the ranks that the start asks for."""
    if start.ranks == "equal":
        return found
    spectra = {name: part.R.diagonal(dim1=1, dim2=2).flatten() for name, part in found.items()}  # type: ignore[union-attr]
    chosen = spectrum_ranks(spectra, start.rank, start.heads)
    return {name: cut_to_rank(part, chosen[name]) for name, part in found.items()}


def spectrum_ranks(spectra: Mapping[str, Float[Tensor, "k"]], rank: int, heads: int = 1) -> dict[str, int]:
    """Each layer's rank, of one head.

    Args:
        spectra: by layer singular values, largest first: `heads` for each rank that the layer may get.

    >>> import torch
    >>> spectra = {"steep": torch.tensor([9.0, 2, 1, 0, 0, 0, 0, 0]), "slow": torch.full((8,), 9.0)}
    >>> spectrum_ranks(spectra, 4)
    {'steep': 2, 'slow': 5}
    """
    gains = np.full((len(spectra), 1 + max(len(S) // heads for S in spectra.values())), -np.inf)
    for row, S in zip(gains, spectra.values(), strict=True):
        energy = (S.double().cpu().numpy() ** 2).reshape(-1, heads).sum(1)
        row[: len(energy)] = energy / max(energy[:rank].sum(), np.finfo(float).tiny)
    return dict(zip(spectra, map(int, _dealt(gains, rank)), strict=True))


def _dealt(gains: np.ndarray, rank: int) -> np.ndarray:
    """Every layer's rank; `gains[l, k]` is what layer l gains when it goes from rank k to k + 1."""
    ranks, least, budget = np.full(len(gains), fewest(rank)), fewest(rank), len(gains) * rank**2
    while True:
        left = budget - int((ranks**2).sum())
        if (layer := _best_addition(gains, ranks, left)) is not None:
            ranks[layer] += 1
        elif (pair := _best_exchange(gains, ranks, left, least)) is not None:
            ranks[pair[0]] += 1
            ranks[pair[1]] -= 1
        else:
            return ranks


def _best_addition(gains: np.ndarray, ranks: np.ndarray, left: int) -> int | None:
    """The layer whose next rank gains most for a number, of those that fit; of equals the lowest in rank."""
    price = 2 * ranks + 1
    worth = np.where(price <= left, gains[np.arange(len(ranks)), ranks] / price, -np.inf)
    if (most := worth.max()) == -np.inf:
        return None
    return int(np.where(worth == most, ranks, ranks.max() + 1).argmin())


def _best_exchange(gains: np.ndarray, ranks: np.ndarray, left: int, least: int) -> tuple[int, int] | None:
    """The layer that gains most by a rank of which other, if any gains and it fits."""
    layers = np.arange(len(ranks))
    lost = np.where(ranks > least, gains[layers, ranks - 1], np.inf)
    fits = 2 * (ranks[:, None] - ranks[None, :] + 1) <= left
    won = np.where(fits, gains[layers, ranks][:, None] - lost[None, :], -np.inf)
    more, less = divmod(int(won.argmax()), len(ranks))
    return (more, less) if won[more, less] > SMALLEST else None


def fault_of_ranks(chosen: Mapping[str, int], shapes: Mapping[str, Shape], start: Start) -> str | None:
    """Why ranks that somebody else chose are none that a spectrum can give here, in words; None: they are."""
    least, budget = fewest(start.rank), len(shapes) * start.rank**2
    for name, rank in chosen.items():
        most = widest_rank(shapes[name], start.rank, start.heads)
        if not least <= rank <= most:
            return f"layer {name}: expected a rank from {least} to {most}, found {rank}"
    if (total := sum(rank**2 for rank in chosen.values())) > budget:
        return f"ranks: their squares add up to {total}, {budget} is the most"
    return None
