"""A node's part in the start of a run: warming up the head, contributing to the bases, keeping them.

See `remote_start` for the server's side and the order of the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.adapter.linear import features
from fedsb.common.files import write_bytes
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.deploy.door import Disclosure, NoisedRelease, PublicFacts, UnprotectedUpdate
from fedsb.deploy.node_config import Refused
from fedsb.errors import UpdateRejected
from fedsb.federation.exchange import Layout
from fedsb.federation.fixed_shape import OfOneShape
from fedsb.federation.secure.summands import Summand
from fedsb.federation.start.contribution import SENT_AS, empty
from fedsb.federation.start.from_gradients import (
    Calibration,
    Draw,
    as_received,
    contribute,
    estimating,
    summed_layout,
)
from fedsb.federation.start.head_warmup import cache_base_outputs, train_head
from fedsb.federation.start.initialize import bases_kind, draw_calibration, start_factors
from fedsb.federation.start.messages import check_start, pack_start, unpack_start
from fedsb.federation.start.ranks import directions_kept, fault_of_ranks
from fedsb.federation.start.settings import PrivateStart, Start, Warmup
from fedsb.federation.training import ClientFailed
from fedsb.methods import Shape
from fedsb.privacy.ledger import Spend
from fedsb.runner.arguments import start_of
from fedsb.runner.clients import Kind
from fedsb.runner.prepare_data import Data, batches_of, protected_batches
from fedsb.runner.prepare_model import BaseModel
from fedsb.runner.remote_start import BASES

MOST_EXAMPLES = 100_000_000
"""The most of all parties together: calibration examples are drawn from as many."""
MOST_WARM_UPS = 1_000
SENT = "noised-sums.safetensors"
"""What this party sent for private bases, to be sent again: a second sum would have to be charged."""


def _disclosure(calibration: Calibration, make: Callable[[], bytes]) -> Disclosure:
    """What an answer made of these examples is, no noise being added."""
    return PublicFacts(make()) if calibration.public else UnprotectedUpdate(make)


@dataclass
class NodeStart:
    """One party's start.

    Attributes:
        registered: how many examples this party says it has.
        folder: where the bases are kept that the server sends, and a noised sum that was sent.
        private: how this party protects its part of the bases; None: it does not.
    """

    config: RunConfig
    client: int
    registered: int
    data: Data
    base: BaseModel
    folder: Path
    private: PrivateStart | None = None

    @cached_property
    def start(self) -> Start:
        return replace(start_of(self.config, self.data.parts), private=self.private)

    @property
    def from_gradients(self) -> bool:
        """Whether this run's bases come from the parties' gradients."""
        method = method_of(self.config)
        return method.draw is None and bases_kind(self.start, method) == "gradient"

    def warm_up(self, question: bytes) -> Disclosure:
        """The head after a few steps on this party's calibration examples, the base model frozen."""
        if self.start.head_warmup is None:
            raise UpdateRejected("this run's config has no head warm-up")
        calibration, number = self._calibration(question, "warm-up")
        return _disclosure(calibration, partial(self._warmed_up, self.start.head_warmup, calibration, number))

    def _warmed_up(self, warmup: Warmup, calibration: Calibration, number: int) -> bytes:
        model, head = self.base.model, self.base.task_head
        indices = calibration.draw[self.client]
        cached = cache_base_outputs(model, calibration.batches_of(indices, self.start.batch_size))
        train_head(model, head, cached, calibration.losses, warmup)
        return self._pack("warm-up", number, {f"head.{n}": p.detach() for n, p in head.items()})

    def contribute(self, question: bytes) -> Disclosure:
        """This party's factors, sketches or noised sum of its gradient at the head it was sent."""
        self._check_from_gradients()
        calibration, _ = self._calibration(question, "contribute")
        if self.private is None:
            return _disclosure(calibration, partial(self._contribution, calibration))
        charge = Spend(self.client, "start", 0, self.private.plans[self.client].release)
        sent = self.folder / SENT
        if sent.exists():
            return NoisedRelease(sent.read_bytes, charge, again=True)
        return NoisedRelease(partial(self._kept_contribution, calibration), charge)

    def _check_from_gradients(self) -> None:
        if not self.from_gradients:
            raise UpdateRejected("this run's config takes no bases from gradients")

    def _kept_contribution(self, calibration: Calibration) -> bytes:
        answer = self._contribution(calibration)
        write_bytes(self.folder / SENT, answer, private=True)
        return answer

    def _contribution(self, calibration: Calibration) -> bytes:
        model = self.base.model
        model.eval()
        with estimating(model):
            sent = contribute(model, self.base.targets, self.start, calibration, self.client)
        return self._pack("contribute", 0, sent)

    def take_bases(self, message: bytes) -> Disclosure:
        """Keep the bases that the server made; what else its message says is not written down."""
        self._check_from_gradients()
        facts, tensors = unpack_start(message, self._bases_like())
        template = self._bases_like(self._ranks(tensors))
        check_start(facts, tensors, expected={"kind": "bases", "round": 0}, template=template)
        bases = pack_start(
            {"kind": "bases", "round": 0}, {name: tensor.to(SENT_AS) for name, tensor in tensors.items()}
        )
        write_bytes(self.folder / BASES, bases, private=True)
        return PublicFacts(self._pack("bases", 0, {}))

    def summand(self, kind: str, question: bytes, answer: bytes) -> Summand:
        """What an answer of this start adds to a secure sum."""
        _, tensors = unpack_start(answer)
        if kind == "contribute":
            return Summand(summed_layout(self.base.targets, self.start).flatten(tensors))
        layout = Layout.of({f"head.{name}": part for name, part in self.base.task_head.items()})
        sent = {name: tensor for name, tensor in unpack_start(question)[1].items() if name != "sizes"}
        calibration, _ = self._calibration(question, "warm-up")
        return Summand(layout.flatten(tensors) - layout.flatten(sent), len(calibration.draw[self.client]))

    def _calibration(self, question: bytes, kind: Kind) -> tuple[Calibration, int]:
        """The draw of all parties, of which this one's examples alone are here, or its own public rows; the
        head is put in place."""
        if self.config.method.init.public is not None and self.data.public is None:
            raise Refused(
                "method.init.public: this party has declared no rows public, so it looks at none for the "
                "start; the server looks at its own, or name a file of public rows in data.public here"
            )
        head = self.base.task_head
        template: dict[str, Tensor] = {f"head.{name}": parameter for name, parameter in head.items()}
        template["sizes"] = torch.empty(len(self.data.parts), dtype=torch.int64)
        facts, tensors = unpack_start(question, template)
        check_start(facts, tensors, expected={"kind": kind}, template=template)
        sizes, number = self._checked_sizes(tensors.pop("sizes")), facts.get("round")
        if not (type(number) is int and 0 <= number <= MOST_WARM_UPS):
            raise UpdateRejected(f"wrong round: expected a count, found {str(number)[:40]!r}")
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(tensors[f"head.{name}"])
        computation: OfOneShape = (batches_of(self.data, self.base.device), self.data.task.losses)
        if self.data.public is not None:
            looked_at_all = {self.client: [*range(len(self.data.public))]}
            return Calibration(looked_at_all, self.data.public, *computation, public=True), number
        if self.private is not None:
            length = self.private.max_length
            computation = protected_batches(self.data, self.base.model, self.base.device, length)
        return Calibration(self._draw(sizes), self.data.train, *computation), number

    def _checked_sizes(self, sizes: Tensor) -> list[int]:
        """How many examples each party has, as the server says.

        Raises:
            UpdateRejected: they are not one count for each, or not this party's count.
        """
        clients = len(self.data.parts)
        if sizes.dtype != torch.int64 or tuple(sizes.shape) != (clients,):
            raise UpdateRejected(f"wrong sizes: expected {clients} whole numbers")
        counts: list[int] = sizes.tolist()
        if min(counts) < 0 or sum(counts) > MOST_EXAMPLES or counts[self.client] != self.registered:
            raise UpdateRejected(
                f"wrong sizes: this party has {self.registered} examples, the server says {str(counts)[:100]}"
            )
        return counts

    def _draw(self, sizes: Sequence[int]) -> Draw:
        """Everybody's draw, or, under privacy, all that this party trains on; its own as indices of its rows,
        of which there may be fewer than registered."""
        client, trained_on = self.client, self.data.parts[self.client]
        if self.private is not None:
            return {client: list(trained_on)}
        ends = list(accumulate(sizes, initial=0))
        parts = [range(start, end) for start, end in pairwise(ends)]
        draw = draw_calibration(parts, self.start.samples, seed=self.start.seed)
        drawn = [i - ends[client] for i in draw.get(client, [])]
        if not (usable := [trained_on[i] for i in drawn if i < len(trained_on)]):
            raise UpdateRejected(f"client {client} has no part in the start")
        return draw | {client: usable}

    def _pack(self, kind: Kind, number: int, tensors: Mapping[str, Tensor]) -> bytes:
        return pack_start({"kind": kind, "round": number, "client": self.client}, tensors)

    @property
    def _shapes(self) -> dict[str, Shape]:
        return {name: Shape(*features(layer)) for name, layer in self.base.targets.items()}

    def _widest(self) -> dict[str, int]:
        """The largest rank that each layer may have in this run."""
        return {name: directions_kept(shape, self.start) for name, shape in self._shapes.items()}

    def _ranks(self, bases: Mapping[str, Tensor]) -> dict[str, int]:
        """The layers' ranks in bases that the server sent.

        Raises:
            UpdateRejected: this run's config does not allow them.
        """
        ranks, shapes = self._widest(), self._shapes
        if self.start.ranks == "spectrum":
            for name in shapes:
                if (A := bases.get(f"{name}.A")) is not None and A.ndim:
                    ranks[name] = len(A) // self.start.heads
            if fault := fault_of_ranks(ranks, shapes, self.start):
                raise UpdateRejected(f"bases: {fault}")
        return ranks

    def _bases_like(self, ranks: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """Bases of these ranks, without numbers; None: of the largest."""
        ranks, bases = ranks or self._widest(), dict[str, Tensor]()
        for name, (out, n_in) in self._shapes.items():
            k = ranks[name] * self.start.heads
            bases |= {f"{name}.B": empty(out, k), f"{name}.A": empty(k, n_in)}
        return bases

    def factors(self) -> dict[str, Factors]:
        """The start factors: as the server sent them, or made here of W0 or a seed."""
        if self.from_gradients:
            return self._kept_bases()
        method = method_of(self.config)
        base, start, clients = self.base, self.start, self.config.federation.clients
        calibration = Calibration({}, [], batches_of(self.data, base.device), self.data.task.losses)
        started = start_factors(base.model, base.targets, {}, method, start, calibration, num_clients=clients)
        return started.factors

    def _kept_bases(self) -> dict[str, Factors]:
        if not (self.folder / BASES).exists():
            raise ClientFailed("it was not sent the bases yet")
        _, tensors = unpack_start((self.folder / BASES).read_bytes())
        sent = {}
        for name, rank in self._ranks(tensors).items():
            core = torch.zeros(self.start.heads, rank, rank)
            sent[name] = Factors(B=tensors[f"{name}.B"], A=tensors[f"{name}.A"], R=core)
        return as_received(sent)
