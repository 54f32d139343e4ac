"""What travels between the server and a client: the layouts of messages, by round and by the client's part.

    down:  the factors a method sends, the task head, and (methods that change base weights) the base's update
    up:    the factors that trained, the task head

A client may hold less than the whole: a smaller rank, fewer heads to train, or some of several experts
(`Part`). Of a mixture what trains in a round goes both ways; with the first message after the hard rounds,
all cores, which the client keeps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.federation.experts import ExpertsPlan
from fedsb.federation.moments import Lasting
from fedsb.methods.averaging.beside import CONTROL, MOMENTS
from fedsb.methods.averaging.stack import factors_are_smaller
from fedsb.methods.method import AggregationInputs, Method, Padding, Shape

NamedShape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Ordered (name, shape) pairs: which number of a flat fp32 vector belongs where."""

    entries: tuple[NamedShape, ...]

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


USAGE = "experts' usage"
"""Shares in which a mixture's experts were used in a round, where losses depend on them."""


class Part(NamedTuple):
    """What of each factor one client holds: its rank, the heads it trains in this round (None: all), and, in
    rounds in which each example has one expert, those of its examples (None: all)."""

    rank: int
    heads: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Which blocks of R it sends; None: all."""
        return self.heads if self.experts is None else self.experts


@dataclass(frozen=True)
class Exchange:
    """A method over given layers, as configured.

    Attributes:
        layers: target layers and their shapes, in the model's order.
        rank: of a party that holds everything (of one head): each layer's, but for `ranks`.
        heads: heads of the core (1 for methods without one).
        task_head: the task head's parameters and shapes.
        scale: s of the update s B R A.
        padding, residual_rank: see `AggregationInputs`.
        upload_dtype: what an upload's numbers travel as; broadcasts are fp32.
        experts: of a mixture, whose R has a block for each; None: one core.
        control_variates: whether they travel with what trains, down as they are and up as they changed.
        moments: whether Adam's start anew in a round, stay with each client, or are averaged too.
        ranks: each layer's own, where they differ; a party of a smaller rank holds no more of any layer.
    """

    method: Method
    layers: Mapping[str, Shape]
    rank: int
    heads: int
    task_head: Mapping[str, tuple[int, ...]]
    scale: float = 1.0
    padding: Padding = "all"
    residual_rank: int | None = None
    upload_dtype: torch.dtype = torch.float32
    experts: ExpertsPlan | None = None
    control_variates: bool = False
    moments: Lasting = "fresh"
    ranks: Mapping[str, int] | None = None

    @property
    def keeps(self) -> bool:
        """Whether clients keep something of their own from one message to the next."""
        own = self.control_variates or self.moments == "kept"
        return own or bool(self.method.stays) or self.method.follow_up is not None

    @property
    def has_beside(self) -> bool:
        """Whether control variates or moments outlast a round."""
        return self.control_variates or self.moments != "fresh"

    @property
    def kinds(self) -> tuple[str, ...]:
        """How names of what travels beside trained numbers start."""
        control = (CONTROL,) if self.control_variates else ()
        return (*control, *(MOMENTS if self.moments == "averaged" else ()))

    @property
    def whole(self) -> Part:
        """The part of a client that holds everything."""
        return Part(self.rank)

    def rank_of(self, layer: str, rank: int) -> int:
        """A layer's rank at a party of this rank."""
        if self.ranks is None:
            return rank
        return self.ranks[layer] if rank == self.rank else min(rank, self.ranks[layer])

    def up(self, round_number: int, part: Part) -> Layout:
        """An upload's layout. Scales of heads never travel: they are folded into R first; nor what stays."""
        trained = self.method.uploads or self.method.trains(round_number)
        names = tuple(name for name in trained if name != "s" and name not in self.method.stays)
        entries = (*self._factors(names, part.rank, part.blocks), *self._others(names))
        return Layout((*entries, *((f"{kind}{n}", shape) for kind in self.kinds for n, shape in entries)))

    def beside(self, round_number: int) -> Layout:
        """What travels, down too, beside what trains in a round."""
        whole, kinds = self.up(round_number, self.whole), self.kinds
        return Layout(tuple(entry for entry in whole.entries if kinds and entry[0].startswith(kinds)))

    def trained(self, round_number: int) -> tuple[str, ...]:
        """Names of what trains in a round and goes up."""
        names = {name for name, _ in self.beside(round_number).entries}
        return tuple(n for n, _ in self.up(round_number, self.whole).entries if n not in names)

    def question(self) -> Layout:
        """What the server asks with in a round's second exchange."""
        rule = self.method.follow_up
        return Layout(tuple(self._factors(rule.asks if rule else (), self.rank)))

    def second_answers(self) -> Layout:
        """What a client answers to it."""
        rule = self.method.follow_up
        return Layout(tuple(self._factors(rule.answers if rule else (), self.rank)))

    def stays(self, round_number: int) -> list[str]:
        """What each client keeps of this round, as `layer.FACTOR`."""
        kept = [name for name in self.method.trains(round_number) if name in self.method.stays]
        return [f"{layer}.{name}" for layer in self.layers for name in kept]

    def in_step(self, names: Iterable[str], step: int) -> dict[str, str]:
        """Of a round's trained factors, as `layer.FACTOR`, those that train in its step -> FACTOR."""
        chosen = self.method.trains_in_step
        factors = {name: name.rpartition(".")[2] for name in names if name not in self.task_head}
        return {n: f for n, f in factors.items() if chosen is None or f in chosen(step)}

    def down(self, rank: int) -> Layout:
        """All that the server shares, at this rank, without an update of the base."""
        return Layout((*self._factors(self.method.sends, rank), *self._others(self.method.sends)))

    def broadcast(self, round_number: int, part: Part) -> Layout:
        """What of it goes to a client of this part in this round; of a mixture, what trains."""
        if self.experts is None:
            return Layout((*self.down(part.rank).entries, *self.beside(round_number).entries))
        names = self.method.trains(round_number)
        return Layout((*self._factors(names, part.rank, part.experts), *self._others(names)))

    def routes_hard(self, round_number: int) -> bool:
        """Whether this is a round of a mixture in which each example goes through its own expert alone."""
        return self.experts is not None and "G" not in self.method.trains(round_number)

    def cores(self, experts: tuple[int, ...] | None = None) -> Layout:
        """The cores of some experts, or of all, and nothing else."""
        return Layout(tuple(self._factors(("R",), self.rank, experts)))

    def needs_cores(self, round_number: int) -> bool:
        """Whether a client must have been sent all cores as they were after the hard rounds."""
        if self.experts is None or "G" not in (names := self.method.trains(round_number)):
            return False
        return "R" not in names or self.experts.compares

    def base(self, base_rank: int) -> Layout:
        """An update of the base weights: factors of that rank, or dense where smaller; 0 is all dense."""
        entries: list[NamedShape] = []
        for name, shape in self.layers.items():
            if base_rank > 0 and factors_are_smaller(shape, base_rank):
                entries.append((f"{name}.base.B", (shape.out, base_rank)))
                entries.append((f"{name}.base.A", (base_rank, shape.n_in)))
            else:
                entries.append((f"{name}.base", tuple(shape)))
        return Layout(tuple(entries))

    def message(
        self, round_number: int, part: Part, base_rank: int | None, *, with_cores: bool = False
    ) -> Layout:
        """A whole broadcast's layout; `base_rank` and `with_cores` as in `wire.Header`."""
        entries = self.broadcast(round_number, part).entries
        if base_rank is not None:
            entries += self.base(base_rank).entries
        if with_cores:
            entries += tuple((f"{name} kept", shape) for name, shape in self.cores().entries)
        return Layout(entries)

    def started(self, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
        """Of the factors as they started, what an aggregation of this method needs, by name."""
        if not self.method.less_start:
            return {}
        return {f"{layer}.{f}": getattr(part, f) for layer, part in factors.items() for f in ("B", "A")}

    def frame(self, round_number: int, vector: Tensor) -> AggregationInputs:
        """What the aggregation of this round knows; `vector` as in `ServerState`."""
        return AggregationInputs(
            current=self.down(self.rank).unflatten(vector),
            answer=dict(self.up(round_number, self.whole).entries),
            layers=self.layers,
            scale=self.scale,
            padding=self.padding,
            residual_rank=self.residual_rank,
        )

    def _others(self, names: tuple[str, ...]) -> Iterator[NamedShape]:
        """What goes with factors of these names: the head, and the experts' usage with a gate."""
        if self.experts is not None and self.experts.balances and "G" in names:
            yield USAGE, (self.experts.count,)
        yield from self.task_head.items()

    def _factors(
        self, names: tuple[str, ...], rank: int, blocks: tuple[int, ...] | None = None
    ) -> list[NamedShape]:
        experts = self.experts.count if self.experts else 0
        count = (experts or self.heads) if blocks is None else len(blocks)
        entries: list[NamedShape] = []
        for layer, (out, n_in) in self.layers.items():
            r = self.rank_of(layer, rank)
            shapes: dict[str, tuple[int, ...]] = {
                "A": (self.heads * r, n_in),
                "B": (out, self.heads * r),
                "R": (count, r, r),
                "G": (experts, r + 1),
                "F": (r, min(out, n_in)),
            }
            if self.method.shapes is not None:
                shapes |= self.method.shapes(Shape(out, n_in), r)
            entries += [(f"{layer}.{name}", shapes[name]) for name in names]
        return entries
