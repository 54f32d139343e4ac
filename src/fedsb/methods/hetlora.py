"""HetLoRA: clients of mixed ranks, zero-padded, weighted by the norm of their update, cut back to size.

Source: Cho et al. 2024, arXiv 2401.06432, without its local rank pruning. Trains A and B at the client's own
rank. Up and down: (out + in) * r_k numbers per layer (and the head). Sent once: nothing. Not exact: A and B
are averaged apart, and a client gets only the leading r_k rows. Client k weighs
||B_k A_k||_F / sum_j ||B_j A_j||_F in the factors (over all layers), as usual in the head. Scale alpha / r.
"""

from __future__ import annotations

import math

from fedsb.adapter import LoraPair
from fedsb.methods.averaging.mean import WeightedSum, keep_directions
from fedsb.methods.averaging.stack import product_squared_norm
from fedsb.methods.fedit import fedit
from fedsb.methods.method import Aggregation, AggregationInputs, Averaged, Upload


class NormWeighted:
    """Two sums: factors weighted by norm, everything else as usual."""

    def __init__(self, frame: AggregationInputs):
        self.frame = frame
        self.usual, self.by_norm = WeightedSum(frame), WeightedSum(frame)

    def add(self, upload: Upload) -> NormWeighted:
        self.usual.add(upload)
        if (norm := update_norm(upload, self.frame)) > 0:
            self.by_norm.add(upload._replace(weight=norm))
        return self


def update_norm(upload: Upload, frame: AggregationInputs) -> float:
    """||B A||_F over all layers together."""
    pairs = (LoraPair(upload.tensors[f"{n}.B"], upload.tensors[f"{n}.A"]) for n in frame.layers)
    return math.sqrt(sum(product_squared_norm(pair) for pair in pairs))


def _finish(sums: NormWeighted) -> Averaged:
    tensors = sums.usual.mean()
    if sums.by_norm.weight > 0:
        factors = {f"{layer}.{name}" for layer in sums.frame.layers for name in ("A", "B")}
        tensors |= {name: t for name, t in sums.by_norm.mean().items() if name in factors}
    keep_directions(tensors, sums.frame)
    return Averaged(tensors)


hetlora = fedit._replace(
    name="hetlora",
    source="Cho et al. 2024, arXiv 2401.06432",
    aggregation=Aggregation(NormWeighted, NormWeighted.add, _finish),
    mixed_ranks=True,
    averages=False,
)
