"""Short names for weights and for rows: two that have the same one are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def base_digest(model: nn.Module, head: Mapping[str, nn.Parameter]) -> str:
    """16 hex digits that differ when a weight of the model differs (its head aside, which is drawn)."""
    drawn = {id(parameter) for parameter in head.values()}
    return _digest({n: p for n, p in model.named_parameters() if id(p) not in drawn})


def layer_digest(layers: Mapping[str, nn.Module]) -> str | None:
    """`dtype:` and 16 hex digits of the layers' weights, in any order of the layers.

    None where the weights' numbers are not at hand: packed in 4 bits, or on no device.
    """
    weights: dict[str, Any] = {name: layer.weight for name, layer in sorted(layers.items())}
    if any(w.is_meta or not w.is_floating_point() for w in weights.values()):
        return None
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in weights.values()})
    return f"{'+'.join(dtypes)}:{_digest(weights)}"


def examples_digest(examples: Iterable[Mapping[str, Any]]) -> str:
    """64 hex digits that differ when an example, its label or its place differs."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
