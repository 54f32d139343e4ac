"""RAVAN: several heads of cores over mutually orthogonal random bases, each with a trained scale.

Source: Raje et al. 2025, arXiv 2506.05568. W0 + sum_h s_h B_h R_h A_h. Trains R (from zero) and the scales
s. Up: heads * r * r numbers per layer (s_h R_h; and the head). Down: the same. Sent once: nothing, the
bases come from the shared seed. Exact: the products s_h R_h are averaged, and s starts each round at 1.
"""

from __future__ import annotations

from fedsb.methods.fed_sb import core_cost, fed_sb
from fedsb.methods.method import Counts, Named, Shape, UploadInputs, always


def _fold_scales(trained: Named, inputs: UploadInputs) -> Named:
    return {"R": trained["s"][:, None, None] * trained["R"]}


def _cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    return core_cost(shape, rank, heads, cohort)._replace(trained=heads * rank * rank + heads)


ravan = fed_sb._replace(
    name="ravan",
    source="Raje et al. 2025, arXiv 2506.05568",
    trains=always("R", "s"),
    cost=_cost,
    bases="orthonormal",
    finish_upload=_fold_scales,
    heads=4,
    personal=False,  # its heads' scales would scale P too, and are folded into R alone
)
