"""fed-mixer: several cores (experts) over Fed-SB's frozen bases, and a gate that chooses between them.

Source: LoRA-Mixer (arXiv 2507.00029) for the training in two stages, CoMoL (arXiv 2603.00573) for the layer;
experts that are federated over shared bases are this package's own.

    hard rounds   each example goes through its own expert; R trains. Up and down: the client's experts
                  alone, E_i * r * r numbers per layer (and the head): Fed-SB's for a client of one expert
    gate rounds   all experts are mixed by the gate; G trains, or R and G. Up and down: E * (r + 1) numbers
                  per layer, with train: both E * r * r more

An expert is averaged over the clients that trained it, each weighted by its examples of that expert: exact
for every expert and cohort, and one that nobody trained stays as it was. The gate's mean is exact in
parameters and not in function, so the method as a whole does not say that it is exact.
"""

from __future__ import annotations

from typing import Literal

from fedsb.methods.averaging.mean import weighted_mean
from fedsb.methods.fed_sb import core_cost
from fedsb.methods.method import Method, no_scale

Train = Literal["router", "both"]


def in_stages(hard_rounds: int, train: Train = "router", *, gated: bool = True) -> Method:
    """The method whose first `hard_rounds` rounds train experts, and the others what `train` says.

    Args:
        gated: whether layers have gates (G); else one gate that is never trained chooses for all of them.
    """
    later = {"router": ("G",), "both": ("R", "G")}[train] if gated else ("R",)

    def trains(round_number: int) -> tuple[str, ...]:
        return ("R",) if round_number <= hard_rounds else later

    return Method(
        name="fed-mixer",
        source="LoRA-Mixer, arXiv 2507.00029; the layer is CoMoL's, arXiv 2603.00573",
        exact=False,
        trains=trains,
        sends=("R", "G") if gated else ("R",),
        scale=no_scale,
        aggregation=weighted_mean(),
        cost=core_cost,
        averages=False,  # of each expert it needs the mean over those who trained it
        experts=in_stages,
    )


fed_mixer = in_stages(hard_rounds=2**53)
