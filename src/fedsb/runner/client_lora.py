"""The LoRA of one client of a run in which something stays with each: the shared part and its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedsb.adapter.layer import Factors, LoraPair, through_core
from fedsb.common.files import read_json
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.errors import InputError
from fedsb.models.peft_folder import at_rank
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.chosen_lora import ChosenLora


def client_number(run: Path, client: str) -> int:
    """The number of a client that is named by its site, or by its number.

    Raises:
        InputError: there is none; the message lists the names.
    """
    record = read_json(run / "partition.json")
    numbers, named = list(record.get("clients", {})), record.get("names", {})
    names = {name: number for number, name in named.items()} | {number: number for number in numbers}
    if client not in names:
        listed = ", ".join(list(named.values()) or numbers)[:1000]
        raise InputError(f"--client: expected one of {listed}, found {client[:80]!r}")
    return int(names[client])


def client_lora(run: Path, config: RunConfig, client: str, shared: ChosenLora) -> ChosenLora:
    """The model of this client as an ordinary LoRA of each layer, exact to fp32.

    Args:
        shared: the run's adapter/.

    Raises:
        InputError: no such client, nothing stays with the run's clients, or it stayed on their machines.
    """
    number, method = client_number(run, client), method_of(config)
    if not method.stays:
        raise InputError(
            f"--client: with {method.name} all clients have one model; leave it out, or train with "
            "method.personal: true"
        )
    saved = load_checkpoint(run / "checkpoint")
    if saved is None or not saved.kept:
        raise InputError(
            f"--client: {run} has nothing of any one client: in a deployed run each node has its own model, "
            "in adapter/ of the run's folder in its `state`"
        )
    kept, scale = saved.kept.get(number, {}), method.scale(config.method.rank, config.method.alpha)
    own = {
        layer: {factor: kept[name] for factor in method.stays if (name := f"{layer}.{factor}") in kept}
        for layer in shared.pairs
    }
    pairs = {n: _pair(pair, saved.factors[n], own[n], scale) for n, pair in shared.pairs.items()}
    return shared._replace(pairs=pairs)


def _pair(shared: LoraPair, start: Factors, own: Mapping[str, Tensor], scale: float) -> LoraPair:
    """s B (R + P) A, or with a client's B in place of the shared one; P and B as they start, where a client
    never trained."""
    B = scale * own["B"] if "B" in own else shared.B
    if "P" in own:
        P = LoraPair(scale * through_core(start.B, own["P"].transpose(1, 2)), start.A)
        B = B + at_rank(P, B.shape[1]).B
    return LoraPair(B, own.get("A", shared.A))
