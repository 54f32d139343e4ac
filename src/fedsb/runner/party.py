"""One client's side of a run: what it holds, and its answer to a round's broadcast.

A simulated run has many parties over one model; a deployed node has one, over its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fedsb.config import RunConfig
from fedsb.federation import wire
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Part
from fedsb.federation.local_model import Example, Trainable
from fedsb.federation.training import LocalTraining, OnStep
from fedsb.runner.arguments import local_training, part_of
from fedsb.runner.prepare_data import Data
from fedsb.runner.private_run import PrivateRun


@dataclass(frozen=True)
class Party:
    """A client and what it trains with.

    Attributes:
        part_of: round -> this client's rank, and the heads it trains.
        private: its plan and its ledger; None without privacy.
        registered: how many examples it says it has, where that is a rounded count; None: as many as it has.
    """

    client: int
    trainable: Trainable
    examples: Sequence[Example]
    training: LocalTraining
    seed: int
    part_of: Callable[[int], Part]
    private: PrivateRun | None = None
    registered: int | None = None

    def answer(self, broadcast: bytes, on_step: OnStep = lambda num_examples: None) -> bytes:
        """Train as the broadcast asks; the update, paid for where it costs privacy.

        Raises:
            UpdateRejected: the broadcast is no message for this party.
            ClientFailed: training failed, or the privacy budget has no room for it.
        """
        number = wire.unpack(broadcast)[0].round
        if self.private is None:
            return self._update(broadcast, number, on_step)
        return self.private.release(self.client, number, lambda: self._update(broadcast, number, on_step))

    def _update(self, broadcast: bytes, number: int, on_step: OnStep) -> bytes:
        return client_update(
            broadcast,
            self.trainable,
            self.examples,
            self.training,
            client=self.client,
            seed=self.seed,
            part=self.part_of(number),
            registered=self.registered,
            on_step=on_step,
            train_with=self.private.trainer(self.client, number) if self.private else None,
        )


def party_of(
    config: RunConfig, data: Data, trainable: Trainable, private: PrivateRun | None, client: int
) -> Party:
    """The config's party of this number, with its part of the data."""
    return Party(
        client=client,
        trainable=trainable,
        examples=[data.train[i] for i in data.parts[client]],
        training=local_training(config),
        seed=config.seed,
        part_of=partial(part_of, config, client),
        private=private,
    )
