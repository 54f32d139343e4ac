"""Named tensors as one flat vector, in a fixed order.

What trains, travels and is averaged is one fp32 vector; the layout says which number belongs where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Ordered (name, shape) pairs."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of these tensors, in their order."""
        return Layout(tuple((name, tuple(t.shape)) for name, t in tensors.items()))

    @cached_property
    def size(self) -> int:
        """How many numbers the vector has."""
        return sum(prod(shape) for _, shape in self.entries)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that differ when a name, a shape or the order differs."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()[:16]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "size"]:
        """The tensors as one fp32 vector on the CPU.

        Raises:
            ValueError: keys or shapes differ from the layout; the message names the first difference.
        """
        self._check(tensors)
        parts = [tensors[name].detach().to("cpu", torch.float32).reshape(-1) for name, _ in self.entries]
        return torch.cat(parts) if parts else torch.zeros(0)

    def unflatten(self, vector: Float[Tensor, "size"]) -> dict[str, Tensor]:
        """Views of the vector under their names."""
        if tuple(vector.shape) != (self.size,):
            raise ValueError(f"expected a vector of {self.size} numbers, found shape {tuple(vector.shape)}")
        sizes = [prod(shape) for _, shape in self.entries]
        parts = torch.split(vector, sizes) if sizes else ()
        return {name: part.reshape(shape) for (name, shape), part in zip(self.entries, parts, strict=True)}

    def view(self, vector: Float[Tensor, "size"]) -> Mapping[str, Tensor]:
        """As `unflatten`, cut only when first looked at."""
        return _View(self, vector)

    def copy_into(self, parameters: Mapping[str, Tensor], vector: Float[Tensor, "size"]) -> None:
        """Write the vector's numbers into live parameters of these names and shapes."""
        self._check(parameters)
        with torch.no_grad():
            for name, value in self.unflatten(vector).items():
                parameters[name].copy_(value)

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        names = {name for name, _ in self.entries}
        if names != set(tensors):
            missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
            raise ValueError(f"keys differ from the layout: missing {missing[:3]}, not expected {extra[:3]}")
        for name, shape in self.entries:
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensors[name].shape)}")


class _View(Mapping[str, Tensor]):
    def __init__(self, layout: Layout, vector: Tensor):
        self._layout, self._vector = layout, vector

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return self._layout.unflatten(self._vector)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._layout.entries)

    def __len__(self) -> int:
        return len(self._layout.entries)
