"""`training.threads: auto` as a number, and torch held to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fedsb.common.cores import Use, usable_cores
from fedsb.config import RunConfig

SMALL = 5_000_000
"""Numbers of a base model up to which one thread trains it: the products of its layers are over about as soon
as a second thread is awake. Such runs give the same numbers on any machine with the same processor."""


def settle_threads(config: RunConfig, model: nn.Module, use: Use) -> tuple[RunConfig, str]:
    """The config with a number of threads, which torch is held to from here on, and a line about it.

    Args:
        use: processor time as the run began, from which the cores that others leave free are told.
    """
    number, why = choose_threads(config, model, use)
    torch.set_num_threads(number)
    training = config.training.model_copy(update={"threads": number})
    return config.model_copy(update={"training": training}), f"training.threads: {number}, {why}"


@contextmanager
def as_before() -> Iterator[None]:
    """After the block torch has the threads that the caller gave it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hold_to_own_cores(config: RunConfig, model: nn.Module, use: Use) -> None:
    """Torch held to the threads of a config from elsewhere, and to no more than there are cores here."""
    torch.set_num_threads(min(choose_threads(config, model, use)[0], usable_cores()))


def choose_threads(config: RunConfig, model: nn.Module, use: Use) -> tuple[int, str]:
    """(How many threads each process trains with, and why so many.)"""
    if config.training.threads != "auto":
        return config.training.threads, "as the config has it"
    if sum(parameter.numel() for parameter in model.parameters()) <= SMALL:
        return 1, "since the model is small"
    free, processes = use.free_cores(), config.federation.side_by_side
    part = max(1, free // processes)
    said = f"since {free} of {os.cpu_count()} cores are free"
    said += f", for {processes} processes" if processes > 1 else ""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and 0 < int(limit) < part:
        return int(limit), "as OMP_NUM_THREADS has it"
    return part, said
