"""Clients in this process, several at a time: which train together, and whether that is worth it.

    cohort -> groups of like many batches, rank and length -> a pass for each step of a group -> outcomes

Before the first group two clients' gradients in one pass are compared with each one's alone. What cannot be
stacked trains one client after another, and a line of the run says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedsb.common.files import read_json, write_json
from fedsb.config import RunConfig
from fedsb.config.sections.federation import AutoEngine, StackedEngine
from fedsb.errors import InputError, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.server import Arrived, Failed, Outcome
from fedsb.federation.stack_trial import not_stackable, seconds_per_client, unlike_alone
from fedsb.federation.stacked import Asked, stacked_updates
from fedsb.federation.stacked_private import PrivateWay, train_stacked_privately
from fedsb.federation.training import ClientFailed
from fedsb.report.progress import Progress
from fedsb.runner.arguments import most_in_one_pass, why_not_stacked
from fedsb.runner.clients import AskClients, LocalClient, MessageTo, clients_here
from fedsb.runner.prepare_data import Data
from fedsb.runner.prepare_model import free_memory, memory_of
from fedsb.tasks.task import length_of

CHOICE = "engine.json"
WORTH_IT = 0.95
"""A stack is taken where it needs at most this share of the time of one client after another."""
NOT_FASTER = "a stack was not faster"
FEWEST_OF_MOST = 4
"""Stacks are timed at the most clients, at half as many, and so on down to this share of them."""
log = logging.getLogger(__name__)


def stacks_here(
    config: RunConfig, data: Data, client_of: Callable[[int], LocalClient], folder: Path, progress: Progress
) -> AskClients:
    """Clients in this process that train as `federation.engine` says."""
    one_by_one, engine = clients_here(client_of, progress), config.federation.engine
    if not isinstance(engine, StackedEngine | AutoEngine):
        return one_by_one
    if reason := why_not_stacked(config):
        _say_one_by_one(progress, reason)
        return one_by_one
    if engine.kind == "stacked":
        most = most_in_one_pass(config)
        return _Stacks(client_of, one_by_one, progress, most).ask
    chosen = _kept_choice(folder / CHOICE, most_in_one_pass(config))
    most = chosen or most_that_fit(config, data)
    if most == 1:
        _say_one_by_one(progress, NOT_FASTER if chosen else "no stack fits into memory")
    return _Stacks(client_of, one_by_one, progress, most, None if chosen else folder / CHOICE).ask


def _kept_choice(file: Path, most: int) -> int | None:
    """How many clients train together, as the run chose when it began; None: it has not.

    Raises:
        InputError: the file holds no such number.
    """
    if not file.exists():
        return None
    clients = read_json(file).get("clients")
    if type(clients) is not int or not 1 <= clients <= most:
        raise InputError(
            f"{file}: expected clients: a whole number from 1 to {most}; remove the file to choose again"
        )
    return clients


def most_that_fit(config: RunConfig, data: Data) -> int:
    """The largest stack that goes into memory, the base being there: at most the config's, by halves."""
    most, alone = most_in_one_pass(config), memory_of(config, data)
    free = free_memory(config) + (alone.weights + alone.factors if alone else 0)
    while most > 1 and (memory := memory_of(_stacking(config, most), data)) and memory.total > free:
        most //= 2
    return most


def _stacking(config: RunConfig, clients: int) -> RunConfig:
    engine = StackedEngine(kind="stacked", clients=clients)
    federation = config.federation.model_copy(update={"engine": engine})
    return config.model_copy(update={"federation": federation})


def _say_one_by_one(progress: Progress, reason: str) -> None:
    progress.stage(f"federation.engine: one client after another ({reason})")


@dataclass
class _Stacks:
    """Clients in groups of at most `most`.

    Attributes:
        to_choose: where the choice by time is to be kept; None: there is none to make.
        settled: whether it is known that, and how many, clients can be stacked.
    """

    client_of: Callable[[int], LocalClient]
    one_by_one: AskClients
    progress: Progress
    most: int
    to_choose: Path | None = None
    settled: bool = False

    def ask(self, cohort: Sequence[int], message_to: MessageTo) -> Iterator[Outcome]:
        if not cohort:
            return
        clients, first = [self.client_of(client) for client in cohort], message_to(cohort[0])
        messages = {cohort[0]: first}

        def message_of(client: int) -> bytes:
            return messages.pop(client) if client in messages else message_to(client)

        if not self.settled and any(private.canaries for one in clients if (private := one.private)):
            self.settled, self.most = True, 1
            _say_one_by_one(self.progress, "an audit's canaries are in each client's steps")
        if self.most == 1 or wire.unpack(first)[0].exchange is not None:
            yield from self.one_by_one(cohort, message_of)
            return
        number = wire.unpack(first)[0].round
        if not self.settled:
            largest = max(grouped(clients, self.most, number), key=len)
            asked = [_asked(one, message_of(one.client), number) for one in largest]
            messages |= {one.client: one.broadcast for one in asked}
            self._settle(clients[0], asked, number)
        for group in grouped(clients, self.most, number):
            if len(group) == 1:
                yield from self.one_by_one([group[0].client], message_of)
            else:
                yield from self._together(group, message_of, number)

    def _settle(self, client: LocalClient, asked: Sequence[Asked], number: int) -> None:
        """Whether these clients can be stacked, and how many are worth it."""
        self.settled = True
        computation = client.local_model, client.training, client.seed
        reason = not_stackable(client.local_model, number)
        if reason is None and len(asked) > 1:
            reason = unlike_alone(asked, *computation)
        if reason is not None:
            self.most = 1
            return _say_one_by_one(self.progress, reason)
        if self.to_choose is not None and len(asked) > 1:
            seconds = {
                count: seconds_per_client(asked[:count], *computation) for count in counts_to_time(len(asked))
            }
            self.most = fastest(seconds)
            write_json(self.to_choose, {"clients": self.most, "seconds_per_client": seconds})
        if self.most > 1:
            self.progress.stage(f"federation.engine: up to {self.most} clients train in one pass")
        else:
            _say_one_by_one(self.progress, NOT_FASTER)

    def _together(
        self, group: Sequence[LocalClient], message_of: MessageTo, number: int
    ) -> Iterator[Outcome]:
        messages = {one.client: message_of(one.client) for one in group}
        first, answers, ways = group[0], dict[int, bytes | Exception](), dict[int, PrivateWay]()
        for one in group:
            try:
                ways |= _private_way(one, number)
            except ClientFailed as reason:
                answers[one.client] = reason
        able = [one for one in group if one.client not in answers]
        asked = [_asked(one, messages[one.client], number) for one in able]
        self.progress.client_begins(first.client, sum(map(_num_examples, group)))
        try:
            found = dict(
                stacked_updates(
                    asked,
                    first.local_model,
                    first.training,
                    seed=first.seed,
                    train_with=partial(train_stacked_privately, ways=ways) if ways else None,
                    declares_loss=first.private is None,
                    on_step=self.progress.step,
                )
            )
            answers |= {one.client: _released(one, found[one.client], number) for one in able}
        except Exception as error:
            log.debug("a stack of %d clients failed", len(group), exc_info=True)
            answers |= {one.client: error for one in able}
        for one in group:
            outcome = _outcome(one.client, answers[one.client])
            self.progress.client_begins(one.client, _num_examples(one))
            self.progress.client_ends(one.client, getattr(outcome, "reason", None))
            yield outcome


def grouped(clients: Sequence[LocalClient], most: int, number: int) -> list[list[LocalClient]]:
    """Clients that train together in this round, at most so many: of like many batches, rank and length."""

    def key(one: LocalClient) -> tuple[float, ...]:
        lengths = sum(map(length_of, one.examples)) / max(1, len(one.examples))
        batches = one.training.batches_per_round(len(one.examples))
        return -batches, -one.part_of(number).rank, lengths, one.client

    ordered = sorted(clients, key=key)
    return [ordered[start : start + most] for start in range(0, len(ordered), most)]


def counts_to_time(most: int) -> list[int]:
    """1, and stacks of so many clients down to a share of them."""
    counts = [most >> halves for halves in range(FEWEST_OF_MOST.bit_length()) if most >> halves > 1]
    return [1, *counts]


def fastest(seconds: dict[int, float]) -> int:
    """The stack that takes the least time for each client; 1 where none is worth it."""
    best = min(seconds, key=lambda count: seconds[count])
    return best if seconds[best] <= WORTH_IT * seconds[1] else 1


def _num_examples(one: LocalClient) -> int:
    return round(one.training.epochs * len(one.examples))


def _asked(one: LocalClient, message: bytes, number: int) -> Asked:
    kept = one.kept
    return Asked(one.client, message, one.examples, one.part_of(number), one.registered, kept)


def _private_way(one: LocalClient, number: int) -> dict[int, PrivateWay]:
    """By client, where its examples are protected.

    Raises:
        ClientFailed: its budget has no room, or its noise was used.
    """
    if one.private is None or one.client not in one.private.plans:
        return {}
    one.private.check_room(one.client, number)
    return {one.client: one.private.way(one.client, number)}


def _released(one: LocalClient, answer: bytes | Exception, number: int) -> bytes | Exception:
    """The answer, charged where it costs privacy; what failed costs nothing."""
    if one.private is None or isinstance(answer, Exception):
        return answer
    try:
        return one.private.release(one.client, number, lambda: answer)
    except ClientFailed as reason:
        return reason


def _outcome(client: int, answer: bytes | Exception) -> Outcome:
    if isinstance(answer, bytes):
        return Arrived(client, answer)
    known = isinstance(answer, (ClientFailed, UpdateRejected))
    return Failed(client, str(answer) if known else f"{type(answer).__name__}: {answer}")
