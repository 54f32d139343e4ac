"""A party on its own machine: opened from the run's config and its own, it answers the server's messages.

    run config + node config -> limits checked -> own rows -> model, start factors -> party
    broadcast -> [base weights as of the last round, from disk] -> party -> answer, kept in the audit folder

What a node keeps lies in one folder for each run: its privacy ledger, its start factors, its base weights'
change for methods that have one, and, if wanted, every answer it sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from fedsb import wire
from fedsb.attached import set_base_updates
from fedsb.check_settings import check_settings
from fedsb.config import RunConfig
from fedsb.data import read_rows
from fedsb.digest import base_digest
from fedsb.errors import UpdateRejected
from fedsb.files import write_bytes, write_json
from fedsb.models import load_tokenizer
from fedsb.node_account import node_account
from fedsb.node_config import NodeConfig, check_limits
from fedsb.node_start import NodeStart
from fedsb.party import Party, party_of
from fedsb.prepare_base import Base, prepare_base, trainable_of
from fedsb.prepare_data import Data, check_can_deploy, make_task
from fedsb.private_run import PrivateRun, prepare_privacy
from fedsb.sources import labelled, renamed
from fedsb.start_wire import unpack_start


@dataclass(frozen=True)
class NodeFacts:
    """What a node tells the server before the run: nothing else about its data leaves.

    Attributes:
        base_digest: of the base model's weights; all parties must have the same.
    """

    client: int
    num_examples: int
    base_digest: str


class Node:
    """One party of one run.

    Args:
        run: names the run; what is kept of another run plays no part.

    Raises:
        InputError: the run asks for more than this party gives, or its data or model do not fit the run.
    """

    def __init__(self, config: RunConfig, own: NodeConfig, run: str):
        check_limits(own, config)
        check_settings(config)
        check_can_deploy(config)
        self.own, self.folder = own, Path(own.state) / run
        self.config = _localized(config, own)
        self.data = _own_data(self.config, own)
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def base(self) -> Base:
        return prepare_base(self.config, self.data)

    @cached_property
    def private(self) -> PrivateRun | None:
        """This party's plan, and its ledgers: of this run, and of its rows over all runs."""
        privacy, account = self.config.privacy, None
        if privacy is not None and privacy.unit == "example":
            secret = privacy.insecure_seed is None
            account = node_account(self.own, self.folder.name, secret_noise=secret)
        return prepare_privacy(self.config, {self.own.client: len(self.data.train)}, self.folder, account)

    @cached_property
    def start(self) -> NodeStart:
        protected = self._with_secret_batches()
        private = protected.private_start() if protected else None
        return NodeStart(self.config, self.own.client, self.data, self.base, self.folder, private)

    @cached_property
    def party(self) -> Party:
        trainable = trainable_of(self.config, self.data, self.base, self.start.factors())
        return party_of(self.config, self.data, trainable, self.private, self.own.client)

    def facts(self) -> NodeFacts:
        """What the server is told; checks the privacy budget on the way."""
        assert self.private is None or self.private.epsilon() >= 0
        return NodeFacts(self.own.client, len(self.data.train), base_digest(self.base.model, self.base.head))

    def answer(self, kind: str, message: bytes) -> bytes:
        """What this party sends back; kept in the audit folder, if wanted.

        Raises:
            UpdateRejected, ClientFailed: as `Party.answer`, or the message does not fit.
        """
        how: dict[str, Callable[[bytes], bytes]] = {
            "warm-up": self.start.warm_up,
            "contribute": self.start.contribute,
            "bases": self.start.take_bases,
            "train": self._train,
        }
        if kind not in how:
            raise UpdateRejected(f"unknown question {kind[:40]!r}: server and node may have other versions")
        answer = how[kind](message)
        self._audit(kind, answer)
        return answer

    def _train(self, broadcast: bytes) -> bytes:
        trainable = self.party.trainable
        if trainable.base_round == 0:
            self._restore_base()
        before = trainable.base_round
        answer = replace(self.party, private=self._with_secret_batches()).answer(broadcast)
        if trainable.base_round != before:
            self._keep_base()
        return answer

    def _with_secret_batches(self) -> PrivateRun | None:
        """The plan, its batches drawn from a secret of this answer alone, which the server cannot know."""
        return self.private and self.private.with_secret_samples()

    def _restore_base(self) -> None:
        file, trainable = self.folder / "base.safetensors", self.party.trainable
        if file.exists():
            kept = load_file(file)
            trainable.base_round = int(kept.pop("round"))
            set_base_updates(trainable.attached, kept)

    def _keep_base(self) -> None:
        trainable = self.party.trainable
        layers = trainable.attached.layers
        kept = {n: u.cpu() for n, layer in layers.items() if (u := layer.base_update) is not None}
        write_bytes(
            self.folder / "base.safetensors", save(kept | {"round": torch.tensor(trainable.base_round)})
        )

    def _audit(self, kind: str, answer: bytes) -> None:
        if not self.own.audit:
            return
        folder = self.folder / "sent"
        folder.mkdir(exist_ok=True)
        name = f"{len(list(folder.glob('*.safetensors'))) + 1:05d}"
        write_bytes(folder / f"{name}.safetensors", answer)
        said = asdict(wire.header_of(answer)) if kind == "train" else unpack_start(answer)[0]
        write_json(folder / f"{name}.json", {"kind": kind} | said | {"bytes": len(answer)})


def _localized(config: RunConfig, own: NodeConfig) -> RunConfig:
    """The run's config with this machine's paths and device."""
    here = {key: value for key, value in own.model.model_dump().items() if value is not None}
    limit = config.data.limit.model_copy(update={"train": None})
    data = config.data.model_copy(update={"train": own.data.train, "limit": limit})
    return config.model_copy(update={"model": config.model.model_copy(update=here), "data": data})


def _own_data(config: RunConfig, own: NodeConfig) -> Data:
    """This party's examples, as its part of a federation in which it knows of no others'."""
    rows = labelled(config, [renamed(row, own.data.columns) for row in read_rows(own.data.train)])
    tokenizer = load_tokenizer(config.model.path)
    task = make_task(config, tokenizer, rows)
    examples = task.encode(rows, own.data.train)
    parts = [[] if c != own.client else list(range(len(examples))) for c in range(config.federation.clients)]
    return Data(task, tokenizer, examples, [], parts, None)
