"""FlexLoRA: the server takes the SVD of the mean product and gives client k its leading r_k directions.

Source: Bai et al. 2024, arXiv 2402.11505. Trains A and B at the client's own rank. Up and down:
(out + in) * r_k numbers per layer (and the head). Sent once: nothing. Exact before the truncation to the
largest rank, lossy after; what is lost is measured each round. B has all singular values, A is orthonormal,
as in the authors' code. Scale alpha / r.
"""

from __future__ import annotations

import math

from fedsb.adapter import LoraPair
from fedsb.methods.averaging.mean import keep_directions
from fedsb.methods.fedit import fedit
from fedsb.methods.flora import Stacks
from fedsb.methods.method import Aggregation, Averaged


def _finish(sums: Stacks) -> Averaged:
    tensors, lost, whole = sums.sums.mean(), 0.0, 0.0
    for layer, stack in sums.stacks.items():
        rank = sums.frame.answer[f"{layer}.A"][0]
        pair = stack.truncated(rank, 1 / sums.sums.weight, left=1.0)
        tensors[f"{layer}.B"], tensors[f"{layer}.A"] = pair
        whole += stack.squared_norm()
        lost += stack.squared_norm(LoraPair(-sums.sums.weight * pair.B, pair.A))
    keep_directions(tensors, sums.frame)
    return Averaged(tensors, deviation=math.sqrt(lost / whole) if whole > 0 else 0.0)


flexlora = fedit._replace(
    name="flexlora",
    source="Bai et al. 2024, arXiv 2402.11505",
    aggregation=Aggregation(Stacks, Stacks.add, _finish),
    mixed_ranks=True,
    averages=False,
)
