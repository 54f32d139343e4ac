"""Messages of the one-time start: named tensors and a few facts, in safetensors. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsb.errors import UpdateRejected

FORMAT = "fedsb-start-1"
Facts = dict[str, int | str]


def pack_start(facts: Facts, tensors: Mapping[str, Tensor]) -> bytes:
    """The message's bytes."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(ready, metadata={FORMAT: json.dumps(facts)})


def unpack_start(message: bytes) -> tuple[Facts, dict[str, Tensor]]:
    """Facts and tensors.

    Raises:
        UpdateRejected: the bytes are no message of this format, or hold a number that is not finite.
    """
    try:
        tensors = load(message)
        header = json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])
        facts = dict(json.loads(header["__metadata__"][FORMAT]))
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UpdateRejected(f"not a {FORMAT} message: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UpdateRejected(f"start message: {name} holds numbers that are NaN or infinite")
    return facts, tensors


def check_start(
    facts: Facts, tensors: Mapping[str, Tensor], *, wanted: Facts, like: Mapping[str, Tensor]
) -> None:
    """Refuse a message of another step or client, or whose tensors are not those of `like` in name and shape.

    Raises:
        UpdateRejected: with the first reason found.
    """
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise UpdateRejected(f"wrong {name}: expected {value!r}, found {facts.get(name)!r}")
    found, expected = ({n: tuple(t.shape) for n, t in side.items()} for side in (tensors, like))
    if found != expected:
        other = sorted(set(found.items()) ^ set(expected.items()))[:3]
        raise UpdateRejected(f"start message: tensors differ from what is expected, first in {other}")
