"""What travels between the server and a client: the layouts of messages, by round and by the client's part.

    down:  the factors a method sends, the task head, and (methods that change base weights) the base's update
    up:    the factors that trained, the task head

A client may hold less than the whole: a smaller rank, or fewer heads to train (`Part`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedsb.federation.layout import Layout
from fedsb.methods.averaging.stack import factors_are_smaller
from fedsb.methods.method import Frame, Method, Padding, Shape

Entry = tuple[str, tuple[int, ...]]


class Part(NamedTuple):
    """What of each factor one client holds: its rank, and the heads it trains in this round (None: all)."""

    rank: int
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Exchange:
    """A method over given layers, as configured.

    Attributes:
        layers: target layers and their shapes, in the model's order.
        rank: the largest rank (of one head).
        heads: heads of the core (1 for methods without one).
        head: the task head's parameters and shapes.
        scale: s of the update s B R A.
        padding, residual_rank: see `Frame`.
        upload_dtype: what an upload's numbers travel as; broadcasts are fp32.
    """

    method: Method
    layers: Mapping[str, Shape]
    rank: int
    heads: int
    head: Mapping[str, tuple[int, ...]]
    scale: float = 1.0
    padding: Padding = "all"
    residual_rank: int | None = None
    upload_dtype: torch.dtype = torch.float32

    @property
    def whole(self) -> Part:
        """The part of a client that holds everything."""
        return Part(self.rank)

    def up(self, round_number: int, part: Part) -> Layout:
        """An upload's layout. Scales of heads never travel: they are folded into R first."""
        names = tuple(name for name in self.method.trains(round_number) if name != "s")
        trained = None if part.heads is None else len(part.heads)
        return Layout((*self._factors(names, part.rank, trained), *self.head.items()))

    def down(self, rank: int) -> Layout:
        """A broadcast's layout, without an update of the base."""
        return Layout((*self._factors(self.method.sends, rank), *self.head.items()))

    def base(self, base_rank: int) -> Layout:
        """An update of the base weights: factors of that rank, or dense where smaller; 0 is all dense."""
        entries: list[Entry] = []
        for name, shape in self.layers.items():
            if base_rank > 0 and factors_are_smaller(shape, base_rank):
                entries += [
                    (f"{name}.base.B", (shape.out, base_rank)),
                    (f"{name}.base.A", (base_rank, shape.n_in)),
                ]
            else:
                entries.append((f"{name}.base", tuple(shape)))
        return Layout(tuple(entries))

    def message(self, rank: int, base_rank: int | None) -> Layout:
        """A whole broadcast's layout; `base_rank` as in `wire.Header.base`."""
        down = self.down(rank)
        return down if base_rank is None else Layout(down.entries + self.base(base_rank).entries)

    def frame(self, round_number: int, vector: Tensor) -> Frame:
        """What the aggregation of this round knows; `vector` as in `ServerState`."""
        return Frame(
            current=self.down(self.rank).unflatten(vector),
            answer=dict(self.up(round_number, self.whole).entries),
            layers=self.layers,
            scale=self.scale,
            padding=self.padding,
            residual_rank=self.residual_rank,
        )

    def _factors(self, names: tuple[str, ...], rank: int, trained_heads: int | None = None) -> list[Entry]:
        heads = self.heads
        found: list[Entry] = []
        for layer, (out, n_in) in self.layers.items():
            shapes: dict[str, tuple[int, ...]] = {
                "A": (heads * rank, n_in),
                "B": (out, heads * rank),
                "R": (heads if trained_heads is None else trained_heads, rank, rank),
            }
            found += [(f"{layer}.{name}", shapes[name]) for name in names]
        return found
