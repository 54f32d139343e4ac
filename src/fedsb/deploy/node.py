"""A party on its own machine: opened from the run's config and its own, it answers the server's messages.

    run config + node config -> sizes, limits, columns, approval -> its rows -> model, factors -> party
    question -> QUESTIONS -> disclosure -> the door -> answer, kept in the audit folder

What a node keeps of a run lies in a folder of its own: the run's privacy ledger, start factors, the change of
base weights for methods that have one, and every answer it sent where `audit` is set. The ledger of its rows
over all runs lies beside these folders (see `node_account`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from safetensors.torch import load_file, save

from fedsb.adapter.attached import set_base_updates
from fedsb.adapter.routing import routing_of
from fedsb.common.cores import Use
from fedsb.common.files import LOCK, alone, write_bytes, write_json
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.deploy.door import Disclosure, Door, NoisedRelease, PublicFacts, UnprotectedUpdate
from fedsb.deploy.node_account import node_account
from fedsb.deploy.node_bounds import check_bounds, check_steps
from fedsb.deploy.node_config import (
    NodeConfig,
    check_run,
    config_digest,
    protects_examples,
    unprotected_refusal,
)
from fedsb.deploy.node_data import localized, read_data
from fedsb.deploy.node_folder import make_private, run_folder
from fedsb.deploy.node_start import NodeStart
from fedsb.deploy.node_sums import NodeSums, node_sums
from fedsb.deploy.own_part import OwnPart
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.summands import ONCE
from fedsb.federation.start.messages import unpack_start
from fedsb.models.digest import base_digest, layer_digest
from fedsb.privacy.ledger import Spend
from fedsb.runner.baselines import score_alone
from fedsb.runner.chosen_lora import ADAPTER
from fedsb.runner.clients import LocalClient, local_clients
from fedsb.runner.example_privacy import private_start
from fedsb.runner.folder import write_model
from fedsb.runner.prepare_data import check_can_deploy
from fedsb.runner.prepare_model import BaseModel, local_model_of, prepare_base
from fedsb.runner.prepare_privacy import prepare_privacy
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.secure_round import integers_of, summand_of
from fedsb.runner.secure_settings import secure_rules
from fedsb.runner.threads import hold_to_own_cores

CORES = "experts.safetensors"
"""In the folder of a run of a mixture: all experts as they were after the hard rounds."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node tells the server before the run: nothing else about its data leaves.

    Attributes:
        num_examples: rows of its file, whatever they hold; `rounded` where anything is to be protected.
        base_digest: of the base model's weights; all parties must have the same.
        experts: of a run whose rows name their experts, how many of its rows are of each, as "12,0,3";
            rounded as num_examples is.
        test_examples: of a run that scores clients, how many rows this one is scored on; they are no part of
            num_examples.
    """

    client: int
    num_examples: int
    base_digest: str
    experts: str = ""
    test_examples: int | None = None

    def said(self) -> dict[str, Any]:
        """As it travels."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None)}

    @property
    def expert_counts(self) -> list[int]:
        """Rows of each expert; none where they name none."""
        return [int(number) for number in self.experts.split(",")] if self.experts else []


class Node:
    """One party of one run.

    Args:
        run: names the run, in 32 hexadecimal digits; what is kept of another run plays no part.

    Raises:
        InputError: the run asks for more than this party gives, or its data or model do not fit the run.
    """

    def __init__(self, config: RunConfig, node_config: NodeConfig, run: str):
        check_bounds(config)
        check_run(node_config, config)
        self.node_config, self.client = node_config, node_config.client
        self.folder = run_folder(node_config.state, run)
        check_settings(config)
        check_can_deploy(config)
        self.config, self.digest = localized(config, node_config), config_digest(config)
        self.data = read_data(self.config, node_config)
        self.config = self.data.settled(self.config)
        check_steps(config, self.registered)

    @property
    def registered(self) -> int:
        """How many examples this party says it has, in every message and in its plans."""
        return self._told(self._rows)

    @property
    def _rows(self) -> int:
        """The rows that it trains on."""
        return len(self.data.parts[self.client])

    @property
    def _test_rows(self) -> int:
        """The rows that it is scored on."""
        return len(self.data.client_tests[self.client])

    def _told(self, count: int) -> int:
        return rounded(count) if self.node_config.limited or self.config.privacy is not None else count

    @property
    def expert_counts(self) -> str:
        """As in `NodeFacts`."""
        experts, held = self.config.method.experts, self.data.counts.get(self.client, {})
        if experts is None or experts.by is None:
            return ""
        return ",".join(str(self._told(held.get(place, 0))) for place in range(len(self.data.experts)))

    @cached_property
    def base(self) -> BaseModel:
        use, base = Use(), prepare_base(self.config, self.data)
        hold_to_own_cores(self.config, base.model, use)
        return base

    @cached_property
    def private(self) -> PrivateRun | None:
        """This party's plan, and its ledgers: of this run, and of its rows over all runs."""
        privacy, account = self.config.privacy, None
        if privacy is not None and privacy.unit == "example":
            secret = privacy.insecure_seed is None
            account = node_account(
                self.node_config, self.folder.name, privacy.account_unit, secret_noise=secret
            )
        sizes, rows, tests = {self.client: self.registered}, self._rows, {self.client: self._test_rows}
        owners = {self.client: self.data.owners[self.client]} if self.data.owners else None
        return prepare_privacy(self.config, sizes, self.folder, account, rows, tests, owners)

    @cached_property
    def door(self) -> Door:
        allowed = self.node_config.gives_unprotected and not protects_examples(self.config.privacy)
        return Door(None if allowed else unprotected_refusal(self.node_config), self.private)

    @cached_property
    def start(self) -> NodeStart:
        protected = self._with_secret_batches()
        private = private_start(protected) if protected else None
        settings = self.config, self.client, self.registered
        return NodeStart(*settings, self.data, self.base, self.folder, private)

    @cached_property
    def sums(self) -> NodeSums:
        """This party's side of secure sums.

        Raises:
            UpdateRejected: this run has none.
        """
        rules = secure_rules(self.config, self.folder.name)
        if rules is None:
            raise UpdateRejected("this run's config has no federation.secure_aggregation")
        return node_sums(self.node_config, rules, self.folder)

    @cached_property
    def local_client(self) -> LocalClient:
        local_model = local_model_of(self.config, self.data, self.base, self.start.factors())
        this_client = local_clients(self.config, self.data, local_model, self.private)(self.client)
        return replace(this_client, registered=self.registered)

    def facts(self) -> NodeFacts:
        """What the server is told before the run; checks the privacy budget on the way."""
        return NodeFacts(**json.loads(self.answer("hello", b"")))

    def answer(self, kind: str, message: bytes) -> bytes:
        """What this party sends back: through the door, and kept in the audit folder, where audit is set.

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
        secure = self.config.federation.secure_aggregation is not None and kind in SUMMED
        disclosure = self._summed(kind, message) if secure else QUESTIONS[kind](self, message)
        answer = self.door.let_out(disclosure)
        self._audit("sum" if secure else kind, answer)
        return answer

    def _summed(self, kind: str, message: bytes) -> Disclosure:
        """As the question in this message is answered, under masks."""
        question = self.sums.opened(kind, message)
        disclosure = QUESTIONS[kind](self, question)
        if isinstance(disclosure, PublicFacts):
            return PublicFacts(self._masked(kind, question, lambda: disclosure.message))
        return replace(disclosure, make=partial(self._masked, kind, question, disclosure.make))

    def _masked(self, kind: str, question: bytes, make: Callable[[], bytes]) -> bytes:
        answer, terms = make(), self.sums.terms
        if kind == "train":
            summand = summand_of(self.config, question, answer, self.local_client.local_model.exchange)
            size, rules = summand.values.numel(), self.sums.member.rules
            integers, coding = integers_of(self.private, rules, terms, size)
            return self.sums.masked(integers(self.client, summand), coding)
        coding = FixedPoint(*ONCE, len(terms.cohort))
        summand = self.start.summand(kind, question, answer)
        return self.sums.masked(summand.integers(coding, terms.heaviest), coding)

    def hello(self, question: bytes) -> Disclosure:
        """`NodeFacts` as JSON."""
        assert self.private is None or self.private.epsilon() >= 0
        digest = base_digest(self.base.model, self.base.task_head)
        tests = self._test_rows if self.config.scores_at_clients else None
        facts = NodeFacts(self.client, self.registered, digest, self.expert_counts, tests)
        return PublicFacts(json.dumps(facts.said()).encode())

    def statistics(self, question: bytes) -> Disclosure:
        """This party's sums for the gate of a mixture."""
        experts = self.config.method.experts
        if experts is None or experts.start != "statistics":
            raise UpdateRejected("this run's config makes no gate from statistics")
        return UnprotectedUpdate(partial(self.local_client.statistics, question))

    def score(self, broadcast: bytes) -> Disclosure:
        """This party's counts for a score of the model in a round's broadcast, on rows it never trains on.
        Of no rows they are zeros."""
        number, private = wire.unpack(broadcast)[0].round, self.private
        self._check_number(number, self.config.federation.rounds + 1)
        make = partial(self._answered_and_kept, self.local_client, broadcast, LocalClient.score)
        if not self._test_rows:
            return PublicFacts(make())
        mechanism = private.charge_of(self.client, number, "score") if private else None
        if mechanism is None:
            return UnprotectedUpdate(make)
        return NoisedRelease(make, Spend(self.client, "score", number - 1, mechanism))

    def alone(self, broadcast: bytes) -> Disclosure:
        """The same of a model that this party trains alone, from the run's first broadcast."""
        if "local" not in self.config.evaluation.baselines:
            raise UpdateRejected("this run's config asks for no local baseline")
        self._check_number(wire.unpack(broadcast)[0].round, 1)
        rounds = self.config.federation.rounds
        return UnprotectedUpdate(partial(score_alone, self.local_client, rounds, broadcast))

    def _check_number(self, number: int, last: int) -> None:
        if not 1 <= number <= last:
            raise UpdateRejected(f"wrong round: expected one from 1 to {last}, found {number}")

    def train(self, broadcast: bytes) -> Disclosure:
        """This party's update of a round of the plan, or its second answer, which the first paid for."""
        header = wire.unpack(broadcast)[0]
        number, again = header.round, header.exchange is not None
        self._check_number(number, self.config.federation.rounds)
        this_client = replace(self.local_client, private=self._with_secret_batches())
        make = partial(self._answered_and_kept, this_client, broadcast, LocalClient.answer)
        mechanism = this_client.private.charge_of(self.client, number) if this_client.private else None
        if mechanism is None:
            return UnprotectedUpdate(make)
        return NoisedRelease(make, Spend(self.client, "round", number, mechanism), again=again)

    def _answered_and_kept(
        self, this_client: LocalClient, broadcast: bytes, answers: Callable[[LocalClient, bytes], bytes]
    ) -> bytes:
        """The answer, given with what this node keeps of the run, which is kept as the answer left it."""
        local_model, header = this_client.local_model, wire.unpack(broadcast)[0]
        number, second = header.round, header.exchange is not None
        if local_model.base_round == 0:
            self._restore_base()
        before, cores = local_model.base_round, self._restored_cores()
        own = OwnPart(self.folder, self.digest)
        stays = local_model.exchange.method.stays
        keeps = local_model.exchange.keeps
        if keeps:
            this_client = replace(this_client, kept=own.before(number + second))
        answer = answers(this_client, broadcast)
        if keeps and answers is LocalClient.answer and not second:
            own.keep(number, this_client.kept)
        elif stays and number > self.config.federation.rounds:  # the end of the run: this party's own model
            digest = layer_digest({name: layer.base for name, layer in local_model.attached.layers.items()})
            write_model(self.folder / ADAPTER, self.config, self.base, local_model.attached, digest)
        if local_model.base_round != before:
            self._keep_base()
        if (routing := routing_of(local_model.model)) is not None and routing.cores is not cores:
            write_bytes(self.folder / CORES, save(dict(routing.cores)), private=True)
        return answer

    def _restored_cores(self) -> Mapping[str, torch.Tensor]:
        """All experts' cores as they were sent once; none before that."""
        routing, file = routing_of(self.local_client.local_model.model), self.folder / CORES
        if routing is None:
            return {}
        if not routing.cores and file.exists():
            routing.cores = load_file(file)
        return routing.cores

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
        content = save(kept | {"round": torch.tensor(local_model.base_round)})
        write_bytes(self.folder / "base.safetensors", content, private=True)

    def _audit(self, kind: str, answer: bytes) -> None:
        if not self.node_config.audit:
            return
        folder = self.folder / "sent"
        make_private(folder)
        name = f"{len(list(folder.glob('*.json'))) + 1:05d}"
        said = {"kind": kind} | _said(kind, answer) | {"bytes": len(answer)}
        write_json(folder / f"{name}.json", said, private=True)
        if kind != "hello":
            write_bytes(folder / f"{name}.safetensors", answer, private=True)


QUESTIONS: Mapping[str, Callable[[Node, bytes], Disclosure]] = {
    "hello": Node.hello,
    "warm-up": lambda node, question: node.start.warm_up(question),
    "contribute": lambda node, question: node.start.contribute(question),
    "bases": lambda node, question: node.start.take_bases(question),
    "statistics": Node.statistics,
    "keys": lambda node, question: PublicFacts(node.sums.answer("keys", question)),
    "shares": lambda node, question: PublicFacts(node.sums.answer("shares", question)),
    "unmask": lambda node, question: PublicFacts(node.sums.answer("unmask", question)),
    "train": Node.train,
    "score": Node.score,
    "alone": Node.alone,
}
"""Every question there is (`clients.Kind`), and what is disclosed in answer. Nothing else is answered."""
SUMMED = ("warm-up", "contribute", "train")
"""Questions whose answers leave under masks, with secure aggregation; they come in its messages then."""


def _said(kind: str, answer: bytes) -> dict[str, object]:
    """What an answer says of itself."""
    if kind == "hello":
        return dict(json.loads(answer))
    header = kind in ("train", "statistics", "score", "alone")
    return asdict(wire.header_of(answer)) if header else dict(unpack_start(answer)[0])


def rounded(count: int) -> int:
    """The count to two significant digits, half of a unit upwards.

    >>> [rounded(count) for count in (1, 99, 104, 105, 12_345)]
    [1, 99, 100, 110, 12000]
    """
    unit = 10 ** max(len(str(count)) - 2, 0)
    return (count + unit // 2) // unit * unit
