"""Which LoRA of a run goes out: its adapter, one expert of its mixture, or the mean of the experts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fedsb.adapter.layer import LoraPair
from fedsb.adapter.mixture import Mixture
from fedsb.errors import InputError
from fedsb.models.mixture_folder import is_mixture, read_mixture
from fedsb.models.peft_folder import base_weights_of, read_adapter

ADAPTER, MIXTURE = "adapter", "mixture"
"""Folders in that of a run."""
MEAN = "mean"
"""Stands for the experts' mean, weighted by their training examples."""
PLAIN = re.compile(r"(?!(expert|client)-\d+$)[a-z0-9][a-z0-9_-]{0,63}", re.IGNORECASE | re.ASCII)


def model_folder(run: Path) -> Path:
    """Where a run's model lies: its mixture, which its adapter/ is not, or its adapter."""
    return run / MIXTURE if is_mixture(run / MIXTURE) else run / ADAPTER


class ChosenLora(NamedTuple):
    """A LoRA of a run.

    Attributes:
        peft_config: of the run's adapter/: rank, base model, kind of task.
        pairs: by layer.
        head: trained parameters outside the base, by name in the model.
        base_weights: `layer_digest` of the layers; None where nobody knew.
        expert: whose it is; None of a run without a mixture.
    """

    peft_config: dict[str, Any]
    pairs: dict[str, LoraPair]
    head: dict[str, Tensor]
    base_weights: str | None
    expert: str | None


def chosen_lora(run: Path, expert: str | None) -> ChosenLora:
    """The LoRA of a finished run.

    Args:
        expert: of a mixture one of its names, or MEAN.

    Raises:
        InputError: a mixture without a choice, a choice without a mixture, or no such expert.
    """
    peft_config, pairs, head = read_adapter(run / ADAPTER)
    lora = ChosenLora(peft_config, pairs, head, base_weights_of(run / ADAPTER), expert)
    mixture = read_mixture(run / MIXTURE).mixture if is_mixture(run / MIXTURE) else None
    if mixture is None:
        if expert is not None:
            raise InputError(f"--expert: {run} has one adapter and no mixture; leave it out")
        return lora
    if expert not in (*mixture.experts, MEAN):
        names = ", ".join(mixture.experts)[:1000]
        given = "nothing says which" if expert is None else f"found {expert!r}"
        raise InputError(
            f"--expert: {run} is a mixture, and one adapter holds one expert: expected {names} or {MEAN}, "
            f"{given}; --format experts writes all of them"
        )
    return lora if expert not in mixture.experts else lora._replace(pairs=pairs_of(mixture, expert))


def pairs_of(mixture: Mixture, expert: str) -> dict[str, LoraPair]:
    """One expert as an ordinary LoRA of each layer: exact where rows are routed to it alone."""
    place = mixture.experts.index(expert)
    cores = {layer: factors.R[place] for layer, factors in mixture.factors.items() if factors.R is not None}
    return {
        layer: LoraPair(mixture.factors[layer].B @ R, mixture.factors[layer].A) for layer, R in cores.items()
    }


def folder_names(named: Iterable[str], kind: str = "expert") -> dict[str, str]:
    """A folder for each expert or client: its own name where it can be one, else its number."""
    names: dict[str, str] = {}
    for at, name in enumerate(named):
        taken = {folder.lower() for folder in names.values()}
        plain = PLAIN.fullmatch(name) and name.lower() not in taken
        names[name] = name if plain else f"{kind}-{at}"
    return names
