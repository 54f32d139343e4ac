"""How much of one run's bases another's hold: whether paid bases are more than noise.

    python studies/bases_overlap.py RUN OTHER [OTHER ...]

Each is a folder of `fedsb run` with bases of one rank. Prints, for B and A, the share of RUN's subspace that
lies in each OTHER's (mean squared cosine of the principal angles, mean over layers): 1 for the same subspace,
r / size of the layer for one drawn at random. Looks at no data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.runner.checkpoint import load_checkpoint

Bases = dict[str, Factors]


def bases_of(run: Path) -> Bases:
    saved = load_checkpoint(run / "checkpoint")
    if saved is None:
        sys.exit(f"{run}: found no checkpoint of a run in it")
    return saved.factors


def overlap(one: Tensor, other: Tensor) -> float:
    """Share of span(one) within span(other), columns being directions; shapes (size, r)."""
    q, p = (torch.linalg.qr(matrix.float())[0] for matrix in (one, other))
    return float((q.T @ p).square().sum() / q.shape[1])


def overlaps(one: Bases, other: Bases) -> tuple[float, float]:
    """Of B and of A, mean over layers."""
    pairs = [(one[name], other[name]) for name in one]
    return mean(overlap(a.B, b.B) for a, b in pairs), mean(overlap(a.A.T, b.A.T) for a, b in pairs)


def by_chance(bases: Bases) -> tuple[float, float]:
    """Of subspaces drawn at random."""
    shapes = [(f.B.shape, f.A.shape) for f in bases.values()]
    return mean(b[1] / b[0] for b, _ in shapes), mean(a[0] / a[1] for _, a in shapes)


def main(folders: Iterable[str]) -> None:
    run, *others = map(Path, folders)
    own = bases_of(run)
    rows = {"by chance": by_chance(own)} | {str(other): overlaps(own, bases_of(other)) for other in others}
    width = max(map(len, rows))
    print(f"{run}\n{'':{width}}      B      A")
    for name, (b, a) in rows.items():
        print(f"{name:{width}}  {b:.3f}  {a:.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
