"""The clients of a run: what one holds and answers, and how a server reaches them all.

A simulated run has many clients over one model; a deployed node has one, over its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Literal

from fedsb.common.seeding import numpy_generator
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.client import Kept, client_update
from fedsb.federation.cohort import trained_heads
from fedsb.federation.exchange import Part
from fedsb.federation.local_model import Example, LocalModel
from fedsb.federation.private_sum import client_sum
from fedsb.federation.scores import AddNoise, Measure, client_scores
from fedsb.federation.second_exchange import second_answer
from fedsb.federation.secure.member import Verify
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.federation.stacked_private import PrivateWay
from fedsb.federation.statistics import client_statistics
from fedsb.federation.training import ClientFailed, LocalTraining, OnStep
from fedsb.privacy.ledger import Phase
from fedsb.report.progress import Progress
from fedsb.runner.arguments import heads_of, local_training
from fedsb.runner.prepare_data import Data
from fedsb.runner.private_run import PrivateRun
from fedsb.tasks.totals import Totals


@dataclass(frozen=True)
class LocalClient:
    """A client and what it trains with.

    Attributes:
        part_of: round -> this client's rank, and the heads it trains.
        private: its plan and its ledger; None without privacy.
        registered: how many examples it says it has, where that is a rounded count; None: as many as it has.
        tests: its examples that it is scored on; `measure` and `totals` say how.
        kept: what stays with it from round to round, in methods where something does; it changes with an
            answer.
    """

    client: int
    local_model: LocalModel
    examples: Sequence[Example]
    training: LocalTraining
    seed: int
    part_of: Callable[[int], Part]
    private: PrivateRun | None = None
    registered: int | None = None
    tests: Sequence[Example] = ()
    measure: Measure | None = None
    totals: Totals | None = None
    kept: Kept = field(default_factory=dict)

    def answer(self, broadcast: bytes, on_step: OnStep = lambda num_examples: None) -> bytes:
        """Train as the broadcast asks; the update, charged where it costs privacy.

        Raises:
            UpdateRejected: the broadcast is no message for this client.
            ClientFailed: training failed, or the privacy budget has no room for it.
        """
        header = wire.unpack(broadcast)[0]
        number = header.round
        if header.exchange is not None:
            return self._second(broadcast)
        if self.private is None:
            return self._update(broadcast, number, on_step)
        return self.private.release(self.client, number, lambda: self._update(broadcast, number, on_step))

    def statistics(self, question: bytes, on_step: OnStep = lambda num_examples: None) -> bytes:
        """The sums over its rows that a mixture's gate is made of.

        Raises:
            UpdateRejected: the question is none for this method's layers.
        """
        return client_statistics(
            question,
            self.local_model,
            self.examples,
            self.training,
            client=self.client,
            experts=own_experts(self.examples),
            registered=self.registered,
        )

    def score(self, broadcast: bytes, on_step: OnStep = lambda num_examples: None) -> bytes:
        """The sums over its test rows that scores of the model in this broadcast are made of; under privacy
        noised and charged.

        Raises:
            UpdateRejected: the broadcast is no message for this client, or this run asks for no scores.
            ClientFailed: the privacy budget has no room for it.
        """
        if self.totals is None:
            raise UpdateRejected("this run asks for no scores at clients")
        if self.private is None or not self.tests:
            return self._sums(broadcast, self.totals)
        after = wire.unpack(broadcast)[0].round - 1
        sensitivity = self.totals.sensitivity
        if sensitivity is None or self.client not in self.private.scores:
            raise UpdateRejected("this run has no noise for scores at clients")
        noise, totals = self.private.score_noise(self.client, after, sensitivity), self.totals
        return self.private.release(self.client, after, lambda: self._sums(broadcast, totals, noise), "score")

    def _sums(self, broadcast: bytes, totals: Totals, noise: AddNoise | None = None) -> bytes:
        assert self.measure is not None
        return client_scores(
            broadcast,
            self.local_model,
            self.tests,
            self.measure,
            totals,
            client=self.client,
            seed=self.seed,
            part=self.part_of(wire.unpack(broadcast)[0].round),
            kept=self.kept,
            noise=noise,
        )

    def _second(self, question: bytes) -> bytes:
        """The second answer of a round, made of what the first was made of and charged for."""
        count = len(self.examples) if self.registered is None else self.registered
        exchange = self.local_model.exchange
        return second_answer(question, exchange, self.kept, client=self.client, num_examples=count)

    def _update(self, broadcast: bytes, number: int, on_step: OnStep) -> bytes:
        if self.private is not None and self.private.sums_gradients:
            return self._sum(broadcast, self.private.way(self.client, number), on_step)
        return client_update(
            broadcast,
            self.local_model,
            self.examples,
            self.training,
            client=self.client,
            seed=self.seed,
            part=self.part_of(number),
            registered=self.registered,
            on_step=on_step,
            train_with=self.private.trainer(self.client, number) if self.private else None,
            kept=self.kept,
        )

    def _sum(self, broadcast: bytes, way: PrivateWay, on_step: OnStep) -> bytes:
        """The sum of this client's clipped gradients of one step, to be noised as it is added up."""
        return client_sum(
            broadcast,
            self.local_model,
            self.examples,
            self.training,
            way.plan,
            coins=way.coins,
            client=self.client,
            seed=self.seed,
            registered=self.registered,
            on_step=on_step,
        )


def own_experts(examples: Iterable[Example]) -> tuple[int, ...]:
    """The experts that a client of these examples trains; the first alone where they are not known."""
    return tuple(sorted({example.get("expert", 0) for example in examples}))


def part_of(config: RunConfig, client: int, experts: tuple[int, ...], round_number: int) -> Part:
    """The client's rank, and the heads, or of a mixture its experts, that it trains in this round."""
    ranks, trained = config.federation.client_ranks, config.federation.client_heads
    rank = config.method.rank if ranks is None else ranks[client]
    if config.method.experts is not None:
        gated = "G" in method_of(config).trains(round_number)
        return Part(rank, experts=None if gated else experts)
    if trained is None:
        return Part(rank)
    rng = numpy_generator(config.seed, "heads", round_number, client)
    return Part(rank, trained_heads(heads_of(config), trained[client], rng))


def local_clients(
    config: RunConfig,
    data: Data,
    local_model: LocalModel,
    private: PrivateRun | None,
    kept: dict[int, Kept] | None = None,
) -> Callable[[int], LocalClient]:
    """The config's client of each number, with its part of the data.

    Where scores are noised each row is a batch of its own, so that it moves no other row's prediction, not by
    rounding either: what the noise covers is what one row can do.

    kept: client -> what stays with it; entries come as clients are made.
    """
    training, seed, kept = local_training(config), config.seed, {} if kept is None else kept
    size, generate = config.evaluation.batch_size, config.evaluation.generate
    size = size if private is None else 1
    measure, scored = partial(data.task.measure, batch_size=size, generate=generate), config.scores_at_clients

    def local_client(client: int) -> LocalClient:
        examples = [data.train[i] for i in data.parts[client]]
        part = partial(part_of, config, client, own_experts(examples))
        made = LocalClient(client, local_model, examples, training, seed, part, private)
        if local_model.exchange.keeps:
            made = replace(made, kept=kept.setdefault(client, {}))
        if not scored:
            return made
        tests = [data.train[i] for i in data.client_tests[client]]
        return replace(made, tests=tests, measure=measure, totals=data.task.totals)

    return local_client


# How a server reaches its clients: it asks a cohort, and answers come as they are ready.


MessageTo = Callable[[int], bytes]
"""Client -> its message, made when it is about to be sent."""

AskClients = Callable[[Sequence[int], MessageTo], Iterable[Outcome]]
"""(cohort, client -> its broadcast) -> one outcome for each client, as they come."""

Kind = Literal[
    "hello",
    "warm-up",
    "contribute",
    "bases",
    "statistics",
    "train",
    "score",
    "alone",
    "keys",
    "shares",
    "unmask",
]
"""Every question that a node answers; `node.QUESTIONS` has the answer of each."""

ADAPTED: tuple[Kind, Kind, Kind, Kind] = ("train", "statistics", "score", "alone")
"""Questions that are answered with the adapter in the model, which the others must not meet."""

Ask = Callable[[Kind, Sequence[int], MessageTo], Iterable[Outcome]]
"""As `AskClients`, for every kind of question."""


@dataclass(frozen=True)
class RemoteClients:
    """Clients on other machines.

    Attributes:
        sizes: training examples of each, by client.
        experts: of a mixture, how many of them are of each expert, where they say so.
        tests: how many examples more each has to be scored on, where the run asks for that.
        base_digest: of the base model they have; None if they were not asked.
        run: what they call this run.
        verify: (client, signature, text) -> whether that client's registered key signed it; None: none is.
    """

    sizes: Sequence[int]
    ask: Ask
    base_digest: str | None = None
    experts: Sequence[Sequence[int]] = ()
    tests: Sequence[int] = ()
    run: str = ""
    verify: Verify | None = None

    @property
    def parts(self) -> list[list[int]]:
        """Each client's examples, counted through."""
        ends = list(accumulate(self.sizes, initial=0))
        return [list(range(start, end)) for start, end in pairwise(ends)]

    @property
    def client_tests(self) -> list[list[int]]:
        """Each client's test rows, counted from 0; none where they say nothing of them."""
        return [list(range(size)) for size in self.tests or [0] * len(self.sizes)]


def expecting(
    private: PrivateRun, ask_clients: AskClients, number: int, phase: Phase = "round"
) -> AskClients:
    """Clients elsewhere of a private run: asked only while the server's account of them has room."""

    def ask(cohort: Sequence[int], broadcast: MessageTo) -> Iterator[Outcome]:
        able = [client for client in cohort if private.expect(client, number, phase)]
        yield from (Failed(client, private.used_up) for client in cohort if client not in able)
        yield from ask_clients(able, broadcast)

    return ask


def clients_here(
    client_of: Callable[[int], LocalClient],
    progress: Progress,
    answer: Callable[[LocalClient, bytes, OnStep], bytes] = lambda client, *question: client.answer(
        *question
    ),
    *,
    silently: bool = False,
) -> AskClients:
    """Clients in this process; `client_of(client)` is made when its turn comes, and answers so.

    silently: without a bar or a line for each.
    """

    def ask(cohort: Sequence[int], broadcast: MessageTo) -> Iterator[Outcome]:
        def update(client: int) -> bytes:
            local_client = client_of(client)
            if not silently:
                trained = round(local_client.training.epochs * len(local_client.examples))
                progress.client_begins(client, trained)
            return answer(local_client, broadcast(client), progress.step)

        for outcome in simulate_cohort(cohort, update):
            if not silently:
                progress.client_ends(outcome.client, getattr(outcome, "reason", None))
            yield outcome

    return ask


# Many clients over one frozen base in one process: each is trained in turn and costs only its vector.


log = logging.getLogger(__name__)


def simulate_cohort(cohort: Sequence[int], update: Callable[[int], bytes]) -> Iterator[Outcome]:
    """`update(client)` for each client in turn, as outcomes; a client that raises has failed.

    Any exception of one client's training counts as that client's failure, as it would if the client
    ran elsewhere. KeyboardInterrupt and SystemExit go through.
    """
    for client in cohort:
        try:
            yield Arrived(client, update(client))
        except (ClientFailed, UpdateRejected) as reason:
            yield Failed(client, str(reason))
        except Exception as error:
            log.debug("client %d failed", client, exc_info=True)
            yield Failed(client, f"{type(error).__name__}: {error}")
