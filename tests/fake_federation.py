"""A federation whose clients draw random factors instead of training; everything else is the real thing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from dense_methods import Answer, Dense, Oracle
from oracles import numbers
from torch import nn

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach
from fedsb.common.seeding import torch_generator
from fedsb.federation import client as client_module
from fedsb.federation import wire
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange, Part
from fedsb.federation.local_model import LocalModel, load_state
from fedsb.federation.second_exchange import after_second_exchange, second_answer
from fedsb.federation.server import Arrived, Failed, Outcome, RoundReport, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.federation.training import LocalTraining
from fedsb.methods import Averaged, Method, Shape

SEED = 3
LAYERS = {"large": Shape(20, 24), "tall": Shape(40, 7), "small": Shape(5, 4)}
"""Stacks of up to five clients of rank 2 travel as factors, as either, and dense."""


class Linears(nn.Module):
    """One bare linear layer per shape."""

    def __init__(self, layers: Mapping[str, Shape]):
        super().__init__()
        draw = torch.Generator().manual_seed(9)
        for name, (out, n_in) in layers.items():
            layer = nn.Linear(n_in, out, bias=False)
            layer.weight.data = torch.randn(out, n_in, generator=draw)
            self.add_module(name, layer)
        self.out = nn.Linear(3, 2, bias=False)


def start_of(method: Method, layers: Mapping[str, Shape], rank: int, heads: int) -> dict[str, Factors]:
    """What the method starts from; cores begin at random values, as after a gradient start."""
    made = {}
    for name, (out, n_in) in layers.items():
        draw = torch_generator(SEED, "bases", name)
        if method.draw is not None:
            made[name] = method.draw(out, n_in, rank, generator=draw)
            continue
        k = heads * rank
        made[name] = Factors(
            B=torch.linalg.qr(torch.randn(out, k, generator=draw)).Q,
            A=torch.linalg.qr(torch.randn(n_in, k, generator=draw)).Q.T.contiguous(),
            R=torch.randn(heads, rank, rank, generator=draw) if method.has_core else None,
            s=torch.ones(heads) if "s" in method.trains(1) else None,
            P=torch.zeros(heads, rank, rank) if "P" in method.stays else None,
        )
    return made


@dataclass
class Federation:
    """Server, clients and oracle side by side.

    Attributes:
        own: each client has a model of its own; else all share the server's, as in a simulated run.
        messages: each client's message down and up in the last round.
        base_before: what had been added to base weights before the last round, by layer.
        client_models: whole dense update of each client that answered in the last round, by layer.
        kept: what stays with each client, in methods where something does.
    """

    method: Method
    rank: int = 2
    heads: int = 1
    alpha: float | None = 3.0
    layers: Mapping[str, Shape] = field(default_factory=lambda: LAYERS)
    own: bool = False
    padding: str = "all"
    residual_rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        scale = self.method.scale(self.rank, self.alpha)
        head = {"out.weight": (2, 3)}
        self.exchange = Exchange(
            self.method, self.layers, self.rank, self.heads, head, scale, self.padding, self.residual_rank
        )
        self.start = start_of(self.method, self.layers, self.rank, self.heads)
        self.globally, self.clients, self.kept = self._party(), {}, {}
        self.draw = torch.Generator().manual_seed(self.seed)
        sent = {f"{n}.{f}": getattr(part, f) for n, part in self.start.items() for f in self.method.sends}
        head_start = {"out.weight": self.globally.model.out.weight.detach()}
        self.state = ServerState(0, self.exchange.down(self.rank).flatten(sent | head_start))
        dense = {
            n: Dense(
                numbers(f.B),
                numbers(f.A),
                f.R if f.R is None else numbers(f.R),
                self.method.less_start,
                f.F if f.F is None else numbers(f.F),
            )
            for n, f in self.start.items()
        }
        self.oracle = Oracle(self.method.name, dense, scale, self.padding, self.residual_rank)
        self.adopt()

    @property
    def start_by_name(self) -> dict[str, torch.Tensor]:
        """The factors that all started with, as an aggregation knows them."""
        return {f"{n}.{f}": getattr(part, f) for n, part in self.start.items() for f in "BA"}

    def _party(self) -> LocalModel:
        model = Linears(self.layers)
        method = self.method
        attached = attach(
            model,
            self.start,
            trains=method.trains(1),
            scale=self.exchange.scale,
            less_start=method.less_start,
        )
        head = {"out.weight": model.out.weight}
        return LocalModel(
            attached,
            head,
            self.exchange,
            copy.deepcopy(self.start),
            list,
            lambda m, b: b,
            torch.device("cpu"),
        )

    def adopt(self) -> None:
        state = self.state
        load_state(self.globally, state.vector, state.base.total, round_number=state.round, seed=SEED)

    def party(self, client: int) -> LocalModel:
        if not self.own:
            return self.globally
        return self.clients.setdefault(client, self._party())

    def close_round(
        self,
        cohort: Sequence[int],
        *,
        weights: Mapping[int, int] | None = None,
        parts: Mapping[int, Part] | None = None,
        failing: Sequence[int] = (),
        silent: Sequence[int] = (),
    ) -> RoundReport:
        """One round of the server, of these clients and of the oracle; `silent` answer once, not twice."""
        weights, parts = weights or {}, parts or {}
        self.messages, self.client_models, self.received = {}, {}, {}
        self.base_before = {n: numbers(total) for n, total in self.state.base.total.items()}
        answers: list[Answer] = []
        number = self.state.round + 1

        def outcomes() -> Sequence[Outcome]:
            for client in cohort:
                part, weight = parts.get(client, self.exchange.whole), weights.get(client, 1)
                answer = self._client_round(client, part, weight)
                if client in failing:
                    yield Failed(client, "went away")
                    continue
                answers.append(self._answer(number, part, weight, client, answer))
                self.client_models[client] = self._whole_model(self.party(client))
                yield Arrived(client, answer)

        self.state, report = aggregate(
            self.state,
            outcomes(),
            self.exchange,
            weighting="examples",
            part_of=lambda c: parts.get(c, self.exchange.whole),
            start=self.start_by_name,
            second=self.second(self.state, silent),
        )
        self.answer_weights = [a.weight for a in answers]
        self.heads_sent = [a.tensors["out.weight"] for a in answers]
        self.oracle.close_round(number, answers)
        self.adopt()
        return report

    def second(
        self, state: ServerState, silent: Sequence[int] = ()
    ) -> Callable[[Averaged, RoundReport], Averaged] | None:
        """The second exchange of the round that began at this state; None where it has one exchange."""
        if self.method.follow_up is None:
            return None

        def ask(clients: Sequence[int], question: bytes) -> Sequence[Outcome]:
            for client in clients:
                if client in silent:
                    yield Failed(client, "went away later")
                    continue
                count = wire.header_of(self.messages[client][1]).num_examples
                kept = self.kept[client]
                answer = second_answer(question, self.exchange, kept, client=client, num_examples=count)
                yield Arrived(client, answer)

        return partial(
            after_second_exchange,
            state=state,
            exchange=self.exchange,
            ask=ask,
            weighting="examples",
        )

    def _client_round(self, client: int, part: Part, weight: int) -> bytes:
        message = broadcast(self.state, self.exchange, client, part)
        answer = self.answer_to(message, client, part, weight)
        self.messages[client] = (message, answer)
        return answer

    def answer_to(self, message: bytes, client: int, part: Part | None = None, weight: int = 1) -> bytes:
        """A client's answer after training that draws its factors."""
        part = part or self.exchange.whole
        party = self.party(client)

        def random_training(local_model, parameters, *args, **kwargs) -> float:
            self.received[client] = self._whole_model(local_model)
            for name, parameter in parameters.items():
                fresh = torch.randn(parameter.shape, generator=self.draw)
                with torch.no_grad():
                    if part.heads is not None and name.endswith((".R", ".s", ".P")):
                        parameter[list(part.heads)] = fresh[list(part.heads)]
                    else:
                        parameter.copy_(fresh)
            return 0.5

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client_module, "train", random_training)
            examples = [{}] * weight
            answer = client_update(
                message,
                party,
                examples,
                LocalTraining(),
                client=client,
                seed=SEED,
                part=part,
                kept=self.kept.setdefault(client, {}) if self.exchange.keeps else None,
            )
        return answer

    def _answer(self, number: int, part: Part, weight: int, client: int, message: bytes) -> Answer:
        _, vector = wire.unpack(message)
        tensors = self.exchange.up(number, part).unflatten(vector)
        layers = self.party(client).attached.layers
        trained = {f"{n}.{f}": numbers(p) for n, layer in layers.items() for f, p in layer.factors().items()}
        return Answer(weight, {name: numbers(t) for name, t in tensors.items()}, trained, part.heads)

    def _whole_model(self, party: LocalModel) -> dict[str, np.ndarray]:
        """Change of each weight, the base's included, read from the layer's parts in fp64."""
        whole = {}
        for name, layer in party.attached.layers.items():
            k = layer.A.shape[0]
            core = np.eye(k)
            if layer.R is not None:
                blocks = [numbers(R) for R in layer.R]
                if layer.P is not None:
                    blocks = [R + numbers(P) for R, P in zip(blocks, layer.P, strict=True)]
                scales = [1.0] * len(blocks) if layer.s is None else layer.s.tolist()
                r, core = len(blocks[0]), np.zeros((k, k))
                for h, block in enumerate(blocks):
                    core[h * r : (h + 1) * r, h * r : (h + 1) * r] = scales[h] * block
            if layer.F is not None:
                core = numbers(layer.F).T @ numbers(layer.F)
            base = 0.0 if layer.base_update is None else numbers(layer.base_update)
            product = numbers(layer.B) @ core @ numbers(layer.A)
            if self.method.less_start:
                product -= numbers(self.start[name].B) @ numbers(self.start[name].A)
            whole[name] = base + layer.scale * product
        return whole

    def whole(self) -> dict[str, np.ndarray]:
        """The global model's."""
        return self._whole_model(self.globally)

    def base_of(self, client: int) -> dict[str, np.ndarray]:
        """What was added to the base weights of a client's own model: the weights' difference."""
        fresh = Linears(self.layers)
        attached = self.party(client).attached
        return {
            n: numbers(part.base.weight) - numbers(fresh.get_submodule(n).weight)
            for n, part in attached.layers.items()
        }


def random_rounds(
    federation: Federation,
    rounds: int,
    *,
    seed: int,
    part_of: Callable[[int], Part] | None = None,
    clients: int = 5,
    after: Callable[[RoundReport], None] = lambda report: None,
) -> None:
    """Partial cohorts, unequal weights, dropouts."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        cohort = sorted(rng.choice(clients, rng.integers(1, clients + 1), replace=False).tolist())
        failing = [c for c in cohort[1:] if rng.random() < 0.25]
        weights = {c: int(rng.integers(1, 40)) for c in cohort}
        parts = {c: part_of(c) for c in cohort} if part_of else None
        after(federation.close_round(cohort, weights=weights, parts=parts, failing=failing))
