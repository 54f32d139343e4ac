"""`method.experts.folders`: experts that were trained elsewhere, as cores over bases they share."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from fedsb.adapter import Factors
from fedsb.adapter.cores import share_lost
from fedsb.config import RunConfig
from fedsb.models.experts import (
    check_experts,
    check_folders,
    layers_of,
    rank_needed,
    read_experts,
    shared_cores,
)
from fedsb.models.targets import Choice, choose_targets
from fedsb.report.units import percent
from fedsb.runner.arguments import heads_of

EXACT = 1e-6
"""Share of an update that is nothing but rounding in fp32."""


class ImportedExperts(NamedTuple):
    """What the folders became.

    Attributes:
        factors: by layer B (out, r), A (r, in) and the cores R (experts, r, r) at r = method.rank, in the
            folders' order; zeros where an expert does not adapt the layer.
        lost: of each expert the share of its update that the rank leaves out, in Frobenius norm.
        rank_needed: the rank at which nothing is lost.
    """

    factors: dict[str, Factors]
    lost: dict[str, float]
    rank_needed: int

    def in_words(self, rank: int) -> str:
        """What this rank keeps of the experts."""
        if max(self.lost.values()) < EXACT:
            return (
                f"{len(self.lost)} experts from folders, exact at rank {rank} ({self.rank_needed} is enough)"
            )
        each = ", ".join(f"{percent(share)} of {name}" for name, share in self.lost.items())
        return f"rank {rank} loses of the experts {each}; method.rank: {self.rank_needed} loses nothing"


def folders_of(config: RunConfig) -> dict[str, str]:
    """Expert -> where it lies; empty where experts are trained here."""
    experts = config.method.experts
    return dict(experts.folders) if experts is not None and experts.folders is not None else {}


def check_expert_folders(config: RunConfig) -> None:
    """Look at what the folders say of themselves, before a model is loaded.

    Raises:
        InputError: one is missing, or of a kind that cannot be a core.
    """
    check_folders(folders_of(config))


def target_layers(config: RunConfig, model: nn.Module) -> Choice:
    """The layers to adapt: those of `method.targets`, or that experts from folders adapt.

    Raises:
        InputError: as `choose_targets`, or a folder holds what cannot be a core, or is of another model.
    """
    folders = folders_of(config)
    if not folders:
        return choose_targets(model, config.method.targets, rank=config.method.rank * heads_of(config))
    experts = read_experts(folders)
    check_experts(experts, model)
    return Choice(layers_of(experts, model), {})


def imported_experts(config: RunConfig) -> ImportedExperts:
    """The experts in the folders, which `target_layers` has checked against the model.

    Raises:
        InputError: a folder cannot be read.
    """
    experts = read_experts(folders_of(config))
    cores = shared_cores(experts, config.method.rank)
    factors = {layer: Factors(B=part.B, A=part.A, R=part.R) for layer, part in cores.items()}
    lost = dict(zip(experts, share_lost(cores.values()).tolist(), strict=True))
    return ImportedExperts(factors, lost, rank_needed(experts))
