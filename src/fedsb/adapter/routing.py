"""Which expert works on what: the gate of a mixture layer, its losses, and a gate made of sums.

A mixture layer has several cores R (experts) over one pair of frozen bases, and mixes them by a gate G:

    z = A x                                  (N, T, r)
    q = z                                    route: token
    q = mean of z over the asked tokens      route: sequence
    p = softmax(G [q; 1])                    (N, T or 1, E)
    y = W0 x + B sum_e p_e R_e z

The layer is CoMoL's (arXiv 2603.00573) and the training LoRA-Mixer's (arXiv 2507.00029). Hard routing has p
one-hot by each example's own expert. With route: request one gate over the frozen base's pooled states picks
one expert for all layers, as a server of several LoRAs does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fedsb.errors import InputError, RunFailed

Route = Literal["sequence", "token", "request"]
RIDGE = 0.05
"""Added to the within-class covariance, as a share of its mean variance."""


def pooled(z: Float[Tensor, "n t r"], tokens: Bool[Tensor, "n t"]) -> Float[Tensor, "n 1 r"]:
    """The mean of z over each row's tokens, in fp32 at least; zero for a row without any."""
    weights = tokens.to(z.device, torch.promote_types(z.dtype, torch.float32))
    return (weights[:, None] @ z.to(weights.dtype)) / weights.sum(1).clamp(min=1)[:, None, None]


def top(p: Float[Tensor, "n t e"], k: int) -> Float[Tensor, "n t e"]:
    """The k largest weights of each place, which sum to 1 again."""
    values, places = p.topk(k, dim=-1)
    return torch.zeros_like(p).scatter(-1, places, values / values.sum(-1, keepdim=True))


def mix(z: Float[Tensor, "n t r"], p: Float[Tensor, "n t1 e"], R: Float[Tensor, "e r r"]) -> Tensor:
    """sum_e p_e R_e z at each place, by one product: (n, t, e r) by (e r, r); t1 is t or 1."""
    weighted = (p.to(z.dtype)[..., None] * z[..., None, :]).flatten(-2)
    mixed: Tensor = weighted @ R.transpose(1, 2).flatten(0, 1)
    return mixed


def entropies(p: Float[Tensor, "n t1 e"], tokens: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Each row's mean entropy of p over its tokens, in nats."""
    return _mean_over(torch.special.entr(p).sum(-1, keepdim=True), tokens)[:, 0]


def mean_routes(p: Float[Tensor, "n t1 e"], tokens: Bool[Tensor, "n t"]) -> Float[Tensor, "n e"]:
    """Each row's mean of p over its tokens."""
    return _mean_over(p, tokens)


def _mean_over(values: Float[Tensor, "n t1 k"], tokens: Bool[Tensor, "n t"]) -> Float[Tensor, "n k"]:
    return values[:, 0] if values.shape[1] == 1 else pooled(values, tokens)[:, 0]


class Terms(NamedTuple):
    """Weights of what is added to each example's loss in gate rounds.

    Attributes:
        entropy: of the mean entropy of its routes. Above 0 it sharpens them, below 0 it flattens them, which
            is LoRA-Mixer's equation 5.
        balance: of E times its mean route's product with the federation's usage in the round before, a
            constant: an example's loss does not depend on its neighbours.
        keep: of the squared distance of the cores from those of the hard rounds.
    """

    entropy: float = 0.0
    balance: float = 0.0
    keep: float = 0.0


class Gate(nn.Module):
    """Scores of the experts, G [q; 1]. A module of its own, so that per-example gradients count all that
    depends on its scores."""

    def __init__(self, G: nn.Parameter):
        super().__init__()
        self.weight = G

    def forward(self, q: Float[Tensor, "n t1 r"]) -> Float[Tensor, "n t1 e"]:
        return F.linear(q, self.weight[:, :-1], self.weight[:, -1])


class Note(NamedTuple):
    """One pass through one layer: p (n, t or 1, e) as it mixed, q (n, t or 1, r) as its gate saw it."""

    layer: nn.Module
    p: Tensor
    q: Tensor


@dataclass(eq=False)
class Routing:
    """What all mixture layers of one model share: how they route, and what the batch is.

    Attributes:
        names: of the experts, in the order of R.
        top_k: outside training, only so many experts of each place; None: all.
        usage: (E,) shares that sum to 1, the weights of the static mean of the experts.
        gate: (E, d + 1) over the base's pooled states, with route: request.
        hard: p is one-hot by the examples' own experts, not by the gate.
        held: the experts that R has now; None: all.
        cores: by layer (E, r, r), all experts as they were after the hard rounds, once they are known.
        used: (E,) the sum of the mean routes of rows with a loss since it was cleared.
        valid, asked: (n, t) the batch's real tokens, and those that a sequence is routed by.
        experts: (n,) each row's expert; None where it is not known.
    """

    names: tuple[str, ...]
    route: Route = "sequence"
    top_k: int | None = None
    usage: Float[Tensor, "e"] | None = None
    gate: Float[Tensor, "e d1"] | None = None
    hard: bool = False
    held: tuple[int, ...] | None = None
    cores: Mapping[str, Float[Tensor, "e r r"]] = field(default_factory=dict, repr=False)
    used: Float[Tensor, "e"] | None = None
    valid: Bool[Tensor, "n t"] | None = None
    asked: Bool[Tensor, "n t"] | None = None
    experts: Int[Tensor, "n"] | None = None
    off: bool = False
    """The layers are the base's alone."""
    told: Tensor | None = field(default=None, repr=False)
    """The ids of the batch that it was told of."""
    handle: Any = field(default=None, repr=False)
    """The hook by which a batch that nobody told of is seen."""
    notes: list[Note] | None = field(default=None, repr=False)
    kept: dict[nn.Module, Tensor] | None = field(default=None, repr=False)
    """By layer the p of a prompt, which holds for the whole answer."""

    def shares(self) -> Float[Tensor, "e"]:
        """The static mean's weights."""
        return torch.full((len(self.names),), 1 / len(self.names)) if self.usage is None else self.usage

    def through(self, layer: Any, z: Float[Tensor, "*n r"]) -> Float[Tensor, "*n r"]:
        """z through the layer's cores, mixed."""
        R = layer.R.to(z.dtype)
        if len(R) == 1 and self.notes is None:
            return F.linear(z, R[0])
        rows = z if z.dim() == 3 else z[:, None]
        p = self.weights(layer, rows)
        return mix(rows, p, R).view_as(z)

    def weights(self, layer: Any, z: Float[Tensor, "n t r"]) -> Float[Tensor, "n t1 e"]:
        """p of these rows; noted, where somebody takes notes."""
        kept = self.kept
        if kept is not None and layer in kept:
            return kept[layer]
        p = self._one_hot(layer, z) if self._chosen() else self._soft(layer, z)
        if kept is not None:
            kept[layer] = p
        if self.notes is not None:
            self.notes.append(Note(layer, p, self.seen(z)))
        return p

    def seen(self, z: Float[Tensor, "n t r"]) -> Float[Tensor, "n t1 r"]:
        """q: what a gate looks at."""
        if self.route == "token":
            return z.to(torch.promote_types(z.dtype, torch.float32))
        return pooled(z, self._tokens(z, self.asked))

    def _chosen(self) -> bool:
        """Whether each row has one expert, by its own or by the request's."""
        return self.hard or self.route == "request"

    def _soft(self, layer: Any, z: Tensor) -> Tensor:
        p = layer.gate(self.seen(z)).softmax(-1)
        return p if self.top_k is None or layer.training else top(p, self.top_k)

    def _one_hot(self, layer: Any, z: Tensor) -> Tensor:
        count = len(layer.R)
        if count == 1:
            return z.new_ones(len(z), 1, 1)
        if self.experts is None:
            if self.hard:
                raise InputError("experts: these examples have none of their own, which hard routing needs")
            return z.new_full((len(z), 1, count), 1 / count)  # a request's gate is not made yet
        places = self.experts
        if self.held is not None:
            places = (places[:, None] == places.new_tensor(self.held)).int().argmax(1)
        return F.one_hot(_for_rows(places, len(z)), count).to(z)[:, None]

    def _tokens(self, z: Tensor, tokens: Tensor | None) -> Tensor:
        """The mask as it lies over z; all of it where the layer sees whole rows."""
        if tokens is None or z.shape[1] == 1 != tokens.shape[1]:
            return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
        if len(z) % len(tokens) or z.shape[1] != tokens.shape[1]:
            raise InputError(
                f"method.targets: a layer gets {tuple(z.shape[:2])} where the batch has "
                f"{tuple(tokens.shape)} rows and tokens, so that its experts cannot be chosen by row; name "
                "layers that see each row's tokens"
            )
        return _for_rows(tokens, len(z)).to(z.device)


def _for_rows(values: Tensor, rows: int) -> Tensor:
    """Each row's values, repeated for its beams where there are more rows."""
    return values.repeat_interleave(rows // len(values), 0)


def penalties(notes: Sequence[Note], routing: Routing, terms: Terms) -> Float[Tensor, "n"]:
    """What entropy and balance add to each row's loss, from a pass's notes: means over layers and tokens."""
    assert routing.valid is not None
    valid, usage = routing.valid, routing.shares()
    routes = [note.p.to(valid.device) for note in notes]
    entropy = torch.stack([entropies(p, valid) for p in routes]).mean(0)
    route = torch.stack([mean_routes(p, valid) for p in routes]).mean(0)
    used = route.detach().sum(0).cpu()
    routing.used = used if routing.used is None else routing.used + used
    balance = len(usage) * (route @ usage.to(route))
    return terms.entropy * entropy + terms.balance * balance


# A model and its routing


def routing_of(model: nn.Module) -> Routing | None:
    """The routing of the model's mixture layers; None where it has none."""
    routing: Routing | None = getattr(model, "routing", None)
    return routing


NOT_FOR_THE_MODEL = ("labels", "experts", "asked")
"""Parts of a batch that a loss or a router looks at, and no model takes."""


def tell(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own inputs of a batch; its routing, where it has one, is told the rest.

    A batch may have `experts` (n,), and `asked` (n, t): the tokens a sequence is routed by; without them, or
    in rows where there are none, all tokens that the attention mask counts.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in NOT_FOR_THE_MODEL}
    if (routing := routing_of(model)) is not None:
        ids = inputs["input_ids"]
        valid = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        asked = batch.get("asked", valid).to(valid.device)
        routing.valid, routing.asked = valid, torch.where(asked.any(1, keepdim=True), asked, valid)
        routing.experts = experts.to(valid.device) if (experts := batch.get("experts")) is not None else None
        if routing.route == "request" and not routing.hard:
            routing.experts = _requested(model, inputs, routing)
        routing.told = ids
    return inputs


def _tell_itself(model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
    """Before a pass that nobody told the routing of: by its mask alone."""
    routing, ids = routing_of(model), inputs.get("input_ids", args[0] if args else None)
    if routing is None or routing.kept is not None or ids is None or ids is routing.told:
        return
    mask = inputs.get("attention_mask")
    tell(model, {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask}))


def share(routing: Routing, model: nn.Module) -> None:
    """Put the routing on the model whose mixture layers share it."""
    model.routing = routing  # type: ignore[assignment]
    routing.handle = model.register_forward_pre_hook(_tell_itself, with_kwargs=True)


def unshare(model: nn.Module) -> None:
    """Take the model's routing off, if it has one."""
    if (routing := routing_of(model)) is not None:
        routing.handle.remove()
        del model.routing


def base_states(model: nn.Module, inputs: Mapping[str, Tensor]) -> Float[Tensor, "n 1 d"]:
    """The mean of the frozen base's last states over the tokens that a sequence is routed by."""
    routing = routing_of(model)
    assert routing is not None
    assert routing.asked is not None
    mask = inputs.get("attention_mask")
    if mask is not None and not mask[:, 0].all():  # padded on the left, as prompts are: places as without it
        inputs = {**inputs, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    routing.off = True
    try:
        with torch.no_grad():
            states = model.base_model(**inputs)[0]  # type: ignore[operator]
    finally:
        routing.off = False
    return pooled(states, routing.asked)


def _requested(model: nn.Module, inputs: Mapping[str, Tensor], routing: Routing) -> Tensor | None:
    """(n,) the one expert of each request; None before there is a gate."""
    if routing.gate is None:
        return None
    q = base_states(model, inputs)[:, 0]
    gate = routing.gate.to(q)
    chosen: Tensor = (q @ gate[:, :-1].T + gate[:, -1]).argmax(-1)
    return chosen


@contextmanager
def noting(model: nn.Module) -> Iterator[list[Note]]:
    """Inside the block, the list gets a note of every pass through every mixture layer."""
    routing = routing_of(model)
    notes: list[Note] = []
    if routing is None:
        yield notes
        return
    before, routing.notes = routing.notes, notes
    try:
        yield notes
    finally:
        routing.notes = before


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Inside the block, what the first pass through a layer chose holds for all further ones: the prompt
    decides for its answer, with and without a cache of keys and values.

    With route: token, every token is routed by itself.
    """
    routing = routing_of(model)
    if routing is None or routing.route == "token":
        yield
        return
    routing.kept = {}
    try:
        yield
    finally:
        routing.kept = None


# A gate made of sums: linear discriminant analysis with equal priors


@dataclass
class Statistics:
    """Sums over what one gate looked at, in fp64. They add over clients.

    Attributes:
        counts: (E,) how many q of each expert.
        sums: (E, r) their sum.
        moment: (r, r) sum of q q' over all.
    """

    counts: Float[Tensor, "e"]
    sums: Float[Tensor, "e r"]
    moment: Float[Tensor, "r r"]

    @staticmethod
    def zero(experts: int, size: int) -> Statistics:
        """Sums over no rows yet."""
        shapes = (experts,), (experts, size), (size, size)
        return Statistics(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, q: Float[Tensor, "n r"], experts: Int[Tensor, "n"]) -> None:
        """So many more q, with the expert of each."""
        q, experts = q.detach().double().cpu(), experts.cpu()
        self.counts += torch.bincount(experts, minlength=len(self.counts))
        self.sums.index_add_(0, experts, q)
        self.moment += q.T @ q

    def __iadd__(self, other: Statistics) -> Statistics:
        self.counts += other.counts
        self.sums += other.sums
        self.moment += other.moment
        return self


def gate_from(statistics: Statistics) -> Float[Tensor, "e r1"]:
    """The gate of linear discriminant analysis: G_e = [S^-1 mu_e, -mu_e' S^-1 mu_e / 2], in fp32.

    S is the covariance within experts, with RIDGE times its mean variance added. An expert without counts
    gets the mean over all, so that it is neither sought nor shunned.

    Raises:
        RunFailed: there is nothing at all.
    """
    total = float(statistics.counts.sum())
    if total == 0:
        raise RunFailed("method.experts.start: no client gave statistics that a gate could be made of")
    none = statistics.counts == 0
    means = statistics.sums / statistics.counts.clamp(min=1)[:, None]
    means[none] = statistics.sums.sum(0) / total
    within = (statistics.moment - (means.T * statistics.counts) @ means) / total
    size = len(within)
    variance = float(within.diagonal().mean()) or 1.0
    within = within + RIDGE * variance * torch.eye(size, dtype=within.dtype)
    directions = torch.linalg.solve(within, means.T).T
    return torch.cat([directions, -0.5 * (directions * means).sum(1, keepdim=True)], 1).float()
