"""What a federated method is: a value that says what starts, trains, travels and is averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fedsb.adapter import Factors, LoraPair
from fedsb.errors import InputError

Named = Mapping[str, Tensor]
Padding = Literal["all", "owners"]


class Shape(NamedTuple):
    """A target layer."""

    out: int
    n_in: int


class Counts(NamedTuple):
    """How many numbers one layer costs in a round with a full cohort of up-to-date clients.

    Attributes:
        trained: numbers a client trains.
        up: numbers a client sends.
        down: numbers a client receives.
        paper: the round's count over all clients as in the tables of Singhal et al. 2025.
    """

    trained: int
    up: int
    down: int
    paper: float


class DrawFactors(Protocol):
    """Start values of one (out, in) layer from a generator, without data."""

    def __call__(self, out: int, n_in: int, rank: int, *, generator: torch.Generator) -> Factors: ...


class AggregationInputs(NamedTuple):
    """What the server knows as it opens a round's aggregation.

    Attributes:
        current: the shared factors and the head as the cohort's largest rank received them, by name.
        answer: shapes of an upload at the largest rank, by name.
        layers: target layers and their shapes.
        scale: s of the update s B R A.
        padding: how entries that smaller clients lack count (methods with mixed ranks).
        residual_rank: rank kept of a residual; None keeps all of it.
        start: the factors as they started, by name (methods whose updates count from there).
        memory: what former rounds' aggregations left to be kept, by name.
    """

    current: Named
    answer: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, Shape]
    scale: float
    padding: Padding = "all"
    residual_rank: int | None = None
    start: Named = MappingProxyType({})
    memory: Named = MappingProxyType({})


class Upload(NamedTuple):
    """One client's accepted answer.

    Attributes:
        tensors: what it sent, by name, at its own rank.
        vector: the same as one flat vector.
        weight: its weight in the mean.
        heads: which heads of the core, or which experts, it trained; None for all.
        client: whose it is. What is kept apart is put in this order, whatever the order of arrival.
        weights: its weight in the mean of each expert in `heads`; None: `weight`.
    """

    tensors: Named
    vector: Tensor
    weight: float
    heads: tuple[int, ...] | None = None
    client: int = 0
    weights: tuple[float, ...] | None = None


class UploadInputs(NamedTuple):
    """What a client knows as it finishes one layer's upload.

    Attributes:
        before: the layer's trained factors as they were before training, by name.
        factors: all factors of the layer as they are now, those that do not train too.
        round_number: the round, from 1.
        generator: the same for every client of a round, another one for each layer.
    """

    before: Named
    factors: Named
    round_number: int
    generator: torch.Generator


class FollowUp(NamedTuple):
    """The second exchange of a round, with the clients whose first answers were used, layer by layer.

    Attributes:
        asks, answers: names of what the server asks with, and of what a client answers (`Method.shapes`).
        ask: the weighted mean of the first answers -> what the server asks with.
        answer: (the client's factors as it trained them, what it was asked with) -> its answer.
        finish: (what was asked with, the weighted mean of the answers, the last broadcast) -> new factors.
    """

    asks: tuple[str, ...]
    answers: tuple[str, ...]
    ask: Callable[[Named], Named]
    answer: Callable[[Named, Named], Named]
    finish: Callable[[Named, Named, Named], Named]


def views_by_name(vector: Tensor, frame: AggregationInputs) -> dict[str, Tensor]:
    """Views of a vector of all numbers of an upload, by name."""
    parts = vector.split([prod(shape) for shape in frame.answer.values()])
    return {name: part.view(shape) for (name, shape), part in zip(frame.answer.items(), parts, strict=True)}


def current_vector(frame: AggregationInputs) -> Tensor:
    """What was broadcast of the numbers of an upload."""
    return torch.cat([frame.current[name].reshape(-1) for name in frame.answer])


BaseUpdate = dict[str, LoraPair | Tensor]
"""What a round adds to base weights, by layer: a pair (the update is B @ A) or, where smaller, dense."""


class Averaged(NamedTuple):
    """What a round's aggregation gives.

    Attributes:
        tensors: new values by name; names that are missing stay as they were.
        base_update: what every client adds to its base weights; None for most methods.
        deviation: ||averaged update - mean of the updates||_F / ||mean of the updates||_F over all layers,
            before any base update fixes it; None where it is zero by construction.
        memory: what the server is to keep for later rounds; names that are missing stay as they were.
    """

    tensors: Named
    base_update: BaseUpdate | None = None
    deviation: float | None = None
    memory: Named = MappingProxyType({})


class Aggregation(NamedTuple):
    """A stream over the cohort's updates: `finish(add(add(start(frame), u1), u2))`.

    Memory must not grow with the number of updates where the method allows it. The order of the updates may
    change the result by fp64 rounding and no more: answers come as the network has it.
    """

    start: Callable[[AggregationInputs], Any]
    add: Callable[[Any, Upload], Any]
    finish: Callable[[Any], Averaged]


def aggregate_one(aggregation: Aggregation, vector: Tensor, frame: AggregationInputs) -> Averaged:
    """The result if one client that holds everything had sent this vector; it deviates from nothing."""
    upload = Upload(views_by_name(vector, frame), vector, 1.0)
    averaged = aggregation.finish(aggregation.add(aggregation.start(frame), upload))
    return averaged._replace(deviation=None)


class Method(NamedTuple):
    """One federated method.

    Attributes:
        name: as in `method.name`.
        source: author, year, arXiv number.
        exact: whether the averaged model equals the weighted mean of the clients' models.
        trains: round -> the factors A, R, B, s, G, P, F that get gradients and go up.
        sends: the factors a broadcast carries. What trains and is not sent starts again each round, or
            `stays`.
        stays: of what trains, the factors that never leave their client and go on there from round to round.
        scale: (rank, alpha) -> s.
        aggregation: how updates become the next broadcast.
        cost: (layer, rank, heads, cohort size) -> numbers of a round.
        draw: start values without data; None means bases of `bases`.
        bases: "init" takes the bases `method.init` asks for; the others are fixed by the method. "principal"
            is a pair without a core that, times s, is the best approximation of W0.
        singular_values: whether bases of "weights" keep W0's singular values in A.
        finish_upload: changes a layer's trained factors before they go up (RAVAN folds s into R), to others
            of the same names and shapes, less s; or to `uploads`.
        uploads: names of what goes up in place of the trained factors.
        shapes: (layer, rank) -> shapes of what travels and is no factor, by name.
        follow_up: the second exchange of a round; None: there is one.
        trains_in_step: of the factors that train in a round, those of its step, from 0; None: all of them.
        filter_gradient: (factor, its gradient, under privacy clipped and noised) -> what the optimizer gets.
        heads: heads of the core if the config names none.
        mixed_ranks: whether clients may have ranks of their own.
        less_start: whether a layer's update is s (B A - B0 A0), of the factors less what they started as.
        turns: whether a round's end gives factors other directions, so that what was kept of their numbers
            means nothing.
        changes_base: whether rounds add to base weights.
        averages: whether the server needs nothing of the clients' factors but their mean.
        residual: whether it sends what a mean of factors leaves out, which `residual_rank` may cut.
        personal: whether each client may have a core of its own, P, beside the shared one.
        options: keywords with types and defaults, as in `method.options` -> the method with these options.
        experts: of a mixture, whose R holds several cores: (hard rounds, what trains later, whether layers
            have gates) -> the method with these stages. None: one core.
    """

    name: str
    source: str
    exact: bool
    trains: Callable[[int], tuple[str, ...]]
    sends: tuple[str, ...]
    scale: Callable[[int, float | None], float]
    aggregation: Aggregation
    cost: Callable[[Shape, int, int, int], Counts]
    draw: DrawFactors | None = None
    bases: Literal["init", "weights", "orthonormal", "principal"] = "init"
    singular_values: bool = False
    finish_upload: Callable[[Named, UploadInputs], Named] | None = None
    uploads: tuple[str, ...] | None = None
    shapes: Callable[[Shape, int], Mapping[str, tuple[int, ...]]] | None = None
    follow_up: FollowUp | None = None
    trains_in_step: Callable[[int], tuple[str, ...]] | None = None
    filter_gradient: Callable[[str, Tensor], Tensor] | None = None
    heads: int = 1
    mixed_ranks: bool = False
    less_start: bool = False
    turns: bool = False
    changes_base: bool = False
    averages: bool = True
    residual: bool = False
    options: Callable[..., Method] | None = None
    stays: tuple[str, ...] = ()
    personal: bool = False
    experts: Callable[..., Method] | None = None

    @property
    def has_core(self) -> bool:
        """Whether R is what trains, so that heads make sense."""
        return "R" in self.trains(1) or self.experts is not None

    @property
    def refreshes(self) -> bool:
        """Whether bases may be made again in the middle of a run."""
        return self.has_core and self.finish_upload is None and self.experts is None

    @property
    def sends_what_it_trains(self) -> bool:
        """Whether a broadcast holds what an update can be measured from."""
        return self.uploads is None and set(self.trains(1)) - {"s", *self.stays} <= set(self.sends)

    @property
    def sends_plainly(self) -> bool:
        """Whether a client sends what it trained in every step, over directions that stay, and the server
        needs its mean alone."""
        as_trained = self.finish_upload is None and self.trains_in_step is None and self.experts is None
        return self.averages and self.sends_what_it_trains and as_trained and not self.turns

    def with_personal_cores(self) -> Method:
        """The method with R + P for R, where P starts at zero, trains in the same steps and stays."""
        return self._replace(trains=lambda number: (*self.trains(number), "P"), stays=(*self.stays, "P"))

    def heads_of(self, asked: int | None) -> int:
        """The heads asked for, where the method trains a core; else those of the method."""
        return asked if asked is not None and self.has_core and self.experts is None else self.heads


def always(*names: str) -> Callable[[int], tuple[str, ...]]:
    """The same factors train in every round."""
    return lambda round_number: names


def no_scale(rank: int, alpha: float | None) -> float:
    """Methods over orthonormal bases have no scale."""
    return 1.0


def check_option(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value of an option of a method's own.

    Raises:
        InputError: it is not from `low` to `high`.
    """
    if not low <= value <= high:
        raise InputError(
            f"method.options.{name}: expected a number from {low:g} to {high:g}, found {value:g}"
        )


def lora_scale(rank: int, alpha: float | None) -> float:
    """alpha / rank; 1 without alpha, as in the federated SNLI runs of the Fed-SB authors."""
    return 1.0 if alpha is None else alpha / rank
