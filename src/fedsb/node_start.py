"""A node's part in the start of a run: warming up the head, contributing to the bases, keeping them.

See `remote_start` for the server's side and the order of the questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from fedsb.adapter import Factors
from fedsb.client import ClientFailed
from fedsb.config import RunConfig
from fedsb.contribution import Own, PrivateStart
from fedsb.contributions import contribution
from fedsb.errors import UpdateRejected
from fedsb.files import write_bytes
from fedsb.fixed_shape import OfOneShape
from fedsb.gradient_start import Calibration, Draw, as_received, estimating, looked_at
from fedsb.head import cache_base_outputs, train_head
from fedsb.initialize import Start, bases_kind, draw_calibration, gradient_start_of, start_factors
from fedsb.linear import features
from fedsb.peers import Kind
from fedsb.prepare_base import Base
from fedsb.prepare_data import Data, batches_of, protected_batches
from fedsb.settings import heads_of, method_of, start_of
from fedsb.start_wire import check_start, pack_start, unpack_start

BASES = "bases.safetensors"
SENT = "noised-sums.safetensors"
"""What this party sent for private bases, to be sent again: a second sum would have to be paid for."""


@dataclass
class NodeStart:
    """One party's start.

    Attributes:
        folder: where the bases are kept that the server sends, and a noised sum that was sent.
        private: how this party protects its part of the bases; None: it does not.
    """

    config: RunConfig
    client: int
    data: Data
    base: Base
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

    def warm_up(self, question: bytes) -> bytes:
        """The head after a few steps on this party's calibration examples, the base model frozen."""
        warmup, model, head = self.start.head_warmup, self.base.model, self.base.head
        if warmup is None:
            raise UpdateRejected("this run's config has no head warm-up")
        calibration, number = self._calibration(question, "warm-up")
        indices = calibration.draw[self.client]
        cached = cache_base_outputs(model, calibration.batches_of(indices, self.start.batch_size))
        train_head(
            model,
            head,
            cached,
            calibration.losses,
            steps=warmup.steps,
            learning_rate=warmup.learning_rate,
        )
        return self._pack("warm-up", number, {f"head.{n}": p.detach() for n, p in head.items()})

    def contribute(self, question: bytes) -> bytes:
        """This party's factors, sketches or noised sum of its gradient at the head it was sent."""
        if not self.from_gradients:
            raise UpdateRejected("this run's config takes no bases from gradients")
        calibration, _ = self._calibration(question, "contribute")
        sent = self.folder / SENT
        if self.private is not None and sent.exists():
            return sent.read_bytes()
        answer = self._pack("contribute", 0, self._contribution(calibration))
        if self.private is not None:
            write_bytes(sent, answer)
        return answer

    def _contribution(self, calibration: Calibration) -> dict[str, Tensor]:
        how, model = gradient_start_of(self.start), self.base.model
        everyone = sum(map(len, calibration.draw.values()))
        indices = looked_at(how, {self.client: calibration.draw[self.client]})[self.client]
        batches = partial(calibration.batches_of, indices)
        own = Own(batches, calibration.losses, everyone, self.client)
        model.eval()
        with estimating(model):
            return contribution(how).send(model, self.base.targets, how, own)

    def take_bases(self, message: bytes) -> bytes:
        facts, tensors = unpack_start(message)
        check_start(facts, tensors, wanted={"kind": "bases"}, like=self._bases_like())
        write_bytes(self.folder / BASES, message)
        return self._pack("bases", 0, {})

    def _calibration(self, question: bytes, kind: Kind) -> tuple[Calibration, int]:
        """The draw of all parties, of which this one's examples alone are here; the head is put in place."""
        facts, tensors = unpack_start(question)
        sizes = [int(n) for n in tensors.pop("sizes", torch.tensor([]))]
        head = self.base.head
        like = {f"head.{name}": parameter for name, parameter in head.items()}
        check_start(facts, tensors, wanted={"kind": kind}, like=like)
        client, count = self.client, len(self.data.train)
        if len(sizes) != len(self.data.parts) or sizes[client] != count:
            raise UpdateRejected(f"wrong sizes: this party has {count} examples, the server says {sizes}")
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(tensors[f"head.{name}"])
        ends = list(accumulate(sizes, initial=0))
        parts = [range(start, end) for start, end in pairwise(ends)]
        draw = self._draw(parts)
        if client not in draw:
            raise UpdateRejected(f"client {client} has no part in the start")
        draw[client] = [i - ends[client] for i in draw[client]]
        how: OfOneShape = (batches_of(self.data, self.base.device), self.data.task.losses)
        if self.private is not None:
            how = protected_batches(self.data, self.base.model, self.base.device, self.private.max_length)
        return Calibration(draw, self.data.train, *how), int(facts["round"])

    def _draw(self, parts: Sequence[Sequence[int]]) -> Draw:
        if self.private is not None:
            return {client: list(part) for client, part in enumerate(parts)}
        return draw_calibration(parts, self.start.samples, seed=self.start.seed)

    def _pack(self, kind: Kind, number: int, tensors: Mapping[str, Tensor]) -> bytes:
        return pack_start({"kind": kind, "round": number, "client": self.client}, tensors)

    def _bases_like(self) -> dict[str, Tensor]:
        rank, found = self.config.method.rank * heads_of(self.config), dict[str, Tensor]()
        for name, layer in self.base.targets.items():
            out, n_in = features(layer)
            found |= {f"{name}.B": torch.empty(out, rank), f"{name}.A": torch.empty(rank, n_in)}
        return found

    def factors(self) -> dict[str, Factors]:
        """The start factors: as the server sent them, or made here of W0 or a seed."""
        if self.from_gradients:
            return self._kept_bases()
        method = method_of(self.config)
        calibration = Calibration({}, [], batches_of(self.data, self.base.device), self.data.task.losses)
        return start_factors(
            self.base.model,
            self.base.targets,
            {},
            method,
            self.start,
            calibration,
            num_clients=self.config.federation.clients,
        ).factors

    def _kept_bases(self) -> dict[str, Factors]:
        if not (self.folder / BASES).exists():
            raise ClientFailed("it was not sent the bases yet")
        _, tensors = unpack_start((self.folder / BASES).read_bytes())
        heads, rank = heads_of(self.config), self.config.method.rank
        sent = {
            name: Factors(B=tensors[f"{name}.B"], A=tensors[f"{name}.A"], R=torch.zeros(heads, rank, rank))
            for name in self.base.targets
        }
        return as_received(sent)
