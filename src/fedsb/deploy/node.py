"""A party on its own machine: opened from the run's config and its own, it answers the server's messages.

    run config + node config -> sizes, limits, columns, approval -> own rows -> model, factors -> party
    question -> QUESTIONS -> disclosure -> the door -> answer, kept in the audit folder

What a node keeps of a run lies in a folder of its own: the run's privacy ledger, start factors, the change of
base weights for methods that have one, and, if wanted, every answer it sent. The ledger of its rows over all
runs lies beside these folders (see `node_account`).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from fedsb.adapter.attached import set_base_updates
from fedsb.common.files import LOCK, alone
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.deploy.door import Charge, Disclosure, Door, NoisedRelease, PublicFacts, UnprotectedUpdate
from fedsb.deploy.node_account import node_account
from fedsb.deploy.node_bounds import check_bounds, check_steps
from fedsb.deploy.node_config import NodeConfig, check_run, protects_examples, unprotected_refusal
from fedsb.deploy.node_folder import keep, make_private, run_folder
from fedsb.deploy.node_start import NodeStart
from fedsb.errors import InputError, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.start.messages import unpack_start
from fedsb.models import load_tokenizer
from fedsb.models.digest import base_digest
from fedsb.runner.clients import LocalClient, local_clients
from fedsb.runner.prepare_data import Data, check_apart, check_can_deploy, task_of
from fedsb.runner.prepare_model import BaseModel, local_model_of, prepare_base
from fedsb.runner.prepare_privacy import prepare_privacy
from fedsb.runner.private_run import PrivateRun
from fedsb.tasks import Row
from fedsb.tasks.rows import read_rows


@dataclass(frozen=True)
class NodeFacts:
    """What a node tells the server before the run: nothing else about its data leaves.

    Attributes:
        num_examples: rows of its file, whatever they hold; `rounded` where anything is to be protected.
        base_digest: of the base model's weights; all parties must have the same.
    """

    client: int
    num_examples: int
    base_digest: str


class Node:
    """One party of one run.

    Args:
        run: names the run, in 32 hexadecimal digits; what is kept of another run plays no part.

    Raises:
        InputError: the run asks for more than this party gives, or its data or model do not fit the run.
    """

    def __init__(self, config: RunConfig, own: NodeConfig, run: str):
        check_bounds(config)
        check_run(own, config)
        self.own, self.folder = own, run_folder(own.state, run)
        check_settings(config)
        check_can_deploy(config)
        self.config = _localized(config, own)
        self.data = _own_data(self.config, own)
        check_steps(config, self.registered)

    @property
    def registered(self) -> int:
        """How many examples this party says it has, in every message and in its plans."""
        count = len(self.data.train)
        return rounded(count) if self.own.limited or self.config.privacy is not None else count

    @cached_property
    def base(self) -> BaseModel:
        return prepare_base(self.config, self.data)

    @cached_property
    def private(self) -> PrivateRun | None:
        """This party's plan, and its ledgers: of this run, and of its rows over all runs."""
        privacy, account = self.config.privacy, None
        if privacy is not None and privacy.unit == "example":
            secret = privacy.insecure_seed is None
            account = node_account(self.own, self.folder.name, secret_noise=secret)
        private = prepare_privacy(self.config, {self.own.client: self.registered}, self.folder, account)
        return private and private.over_rows(len(self.data.train))

    @cached_property
    def door(self) -> Door:
        allowed = self.own.gives_unprotected and not protects_examples(self.config.privacy)
        return Door(self.own.client, None if allowed else unprotected_refusal(self.own), self.private)

    @cached_property
    def start(self) -> NodeStart:
        protected = self._with_secret_batches()
        private = protected.private_start() if protected else None
        return NodeStart(
            self.config, self.own.client, self.registered, self.data, self.base, self.folder, private
        )

    @cached_property
    def local_client(self) -> LocalClient:
        local_model = local_model_of(self.config, self.data, self.base, self.start.factors())
        this_client = local_clients(self.config, self.data, local_model, self.private)(self.own.client)
        return replace(this_client, registered=self.registered)

    def facts(self) -> NodeFacts:
        """What the server is told before the run; checks the privacy budget on the way."""
        return NodeFacts(**json.loads(self.answer("hello", b"")))

    def answer(self, kind: str, message: bytes) -> bytes:
        """What this party sends back: through the door, and kept in the audit folder, if wanted.

        One process at a time answers from the run's folder.

        Raises:
            Refused, UpdateRejected, ClientFailed: as `Door.let_out`, or the message does not fit.
            RunFailed: another process of this party answers for this run.
        """
        if kind not in QUESTIONS:
            raise UpdateRejected(f"unknown question {kind[:40]!r}: server and node may have other versions")
        if kind == "hello":
            return self._answered(kind, message)
        make_private(self.folder)
        with alone(self.folder / LOCK, str(self.folder)):
            return self._answered(kind, message)

    def _answered(self, kind: str, message: bytes) -> bytes:
        answer = self.door.let_out(QUESTIONS[kind](self, message))
        self._audit(kind, answer)
        return answer

    def hello(self, question: bytes) -> Disclosure:
        """`NodeFacts` as JSON."""
        assert self.private is None or self.private.epsilon() >= 0
        facts = NodeFacts(self.own.client, self.registered, base_digest(self.base.model, self.base.task_head))
        return PublicFacts(json.dumps(asdict(facts)).encode())

    def train(self, broadcast: bytes) -> Disclosure:
        """This party's update of a round of the plan."""
        number, rounds = wire.unpack(broadcast)[0].round, self.config.federation.rounds
        if not 1 <= number <= rounds:
            raise UpdateRejected(f"wrong round: expected one from 1 to {rounds}, found {number}")
        this_client = replace(self.local_client, private=self._with_secret_batches())
        make = partial(self._update, this_client, broadcast)
        private = this_client.private
        mechanism = private.charge_of(self.own.client) if private else None
        if mechanism is None:
            return UnprotectedUpdate(make)
        return NoisedRelease(make, Charge("round", number, mechanism))

    def _update(self, this_client: LocalClient, broadcast: bytes) -> bytes:
        local_model = this_client.local_model
        if local_model.base_round == 0:
            self._restore_base()
        before = local_model.base_round
        answer = this_client.answer(broadcast)
        if local_model.base_round != before:
            self._keep_base()
        return answer

    def _with_secret_batches(self) -> PrivateRun | None:
        """The plan, its batches drawn from a secret of this answer alone, which the server cannot know."""
        return self.private and self.private.with_secret_samples()

    def _restore_base(self) -> None:
        file, local_model = self.folder / "base.safetensors", self.local_client.local_model
        if file.exists():
            kept = load_file(file)
            local_model.base_round = int(kept.pop("round"))
            set_base_updates(local_model.attached, kept)

    def _keep_base(self) -> None:
        local_model = self.local_client.local_model
        layers = local_model.attached.layers
        kept = {n: u.cpu() for n, layer in layers.items() if (u := layer.base_update) is not None}
        keep(self.folder / "base.safetensors", save(kept | {"round": torch.tensor(local_model.base_round)}))

    def _audit(self, kind: str, answer: bytes) -> None:
        if not self.own.audit:
            return
        folder = self.folder / "sent"
        make_private(folder)
        name = f"{len(list(folder.glob('*.json'))) + 1:05d}"
        said = {"kind": kind} | _said(kind, answer) | {"bytes": len(answer)}
        keep(folder / f"{name}.json", json.dumps(said, indent=2).encode())
        if kind != "hello":
            keep(folder / f"{name}.safetensors", answer)


QUESTIONS: Mapping[str, Callable[[Node, bytes], Disclosure]] = {
    "hello": Node.hello,
    "warm-up": lambda node, question: node.start.warm_up(question),
    "contribute": lambda node, question: node.start.contribute(question),
    "bases": lambda node, question: node.start.take_bases(question),
    "train": Node.train,
}
"""Every question there is (`peers.Kind`), and what is disclosed in answer to it. Nothing else is answered."""


def _said(kind: str, answer: bytes) -> dict[str, object]:
    """What an answer says of itself."""
    if kind == "hello":
        return dict(json.loads(answer))
    return asdict(wire.header_of(answer)) if kind == "train" else dict(unpack_start(answer)[0])


def rounded(count: int) -> int:
    """The count to two significant digits, half of a unit upwards.

    >>> [rounded(count) for count in (1, 99, 104, 105, 12_345)]
    [1, 99, 100, 110, 12000]
    """
    unit = 10 ** max(len(str(count)) - 2, 0)
    return (count + unit // 2) // unit * unit


def _localized(config: RunConfig, own: NodeConfig) -> RunConfig:
    """The run's config with this machine's paths and device. Rows without a label are this party's to take
    out: a run must not ask how many there are."""
    here = {key: value for key, value in own.model.model_dump().items() if value is not None}
    limit = config.data.limit.model_copy(update={"train": None})
    here_alone = {"train": own.data.train, "limit": limit, "drop_unlabelled": False}
    data = config.data.model_copy(update=here_alone)
    return config.model_copy(update={"model": config.model.model_copy(update=here), "data": data})


def _own_data(config: RunConfig, own: NodeConfig) -> Data:
    """This party's examples, as its part of a federation in which it knows of no others'.

    Raises:
        InputError: they cannot be read, whatever the cause: the server must not learn which it is.
    """
    try:
        return _encoded(config, own)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{own.data.train}: cannot be read as the run's config has it ({type(error).__name__}: {error})"
        ) from error


def _encoded(config: RunConfig, own: NodeConfig) -> Data:
    rows = _given_rows(own.data.train, own)
    tokenizer = load_tokenizer(config.model.path)
    task = task_of(config, tokenizer, rows)
    examples = task.encode(rows, own.data.train)
    public = None
    if config.method.init.public is not None and own.data.public is not None:
        public = task.encode(_given_rows(own.data.public, own)[: config.method.init.samples], own.data.public)
        check_apart(public, examples, own.data.public)
    parts = [[] if c != own.client else list(range(len(examples))) for c in range(config.federation.clients)]
    return Data(task, tokenizer, examples, [], parts, None, public)


def _given_rows(file: str, own: NodeConfig) -> list[Row]:
    """The file's rows with the columns that this party gives, under the run's names; all if it lists none."""
    columns = own.data.columns
    if not columns:
        return list(read_rows(file))
    return [
        {ours: row[theirs] for ours, theirs in columns.items() if theirs in row} for row in read_rows(file)
    ]


# The open node of a process that lasts: kept from one message to the next where that changes no answer.
#
# A node is opened again, as a fresh process would open it, when the run, its config, this party's config or
# rows have changed, when a node that has trained is asked anything else than to train, and after a failure.
# Nothing of a former node is left in memory then.


HELLO = "hello"


@dataclass
class OpenNode:
    """At most one open node, and what it was opened from.

    Attributes:
        trained: whether its last question was to train.
        spoiled: whether something failed that nobody foresaw; a process that can should end itself.
    """

    node: Node | None = None
    trained: bool = False
    spoiled: bool = False
    _opened_from: tuple[Any, ...] = field(default=())

    def opened(self, kind: str, config: RunConfig, own_file: str | Path, run: str) -> Node:
        """The node that answers a question of this kind.

        Raises:
            InputError: as `NodeConfig.from_yaml` and `Node`.
        """
        own = NodeConfig.from_yaml(own_file)
        stamps = [_stamp(file) for file in (own.data.train, own.data.public) if file is not None]
        wanted = (config.model_dump_json(), own.model_dump_json(), run, stamps)
        if self.node is None or wanted != self._opened_from or (self.trained and kind != "train"):
            self.drop()
            self.node, self._opened_from = Node(config, own, run), wanted
        self.trained = kind == "train"
        return self.node

    def drop(self) -> None:
        """Let go of the node and its model."""
        self.node, self.trained, self._opened_from = None, False, ()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _stamp(file: str) -> tuple[int, ...]:
    """Differs when the file was written again; empty if there is no such file."""
    try:
        found = Path(file).stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
