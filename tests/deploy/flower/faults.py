"""A grid on which seeded things go wrong, and the run that one with such faults must be equal to.

interrupting   the server stops, a client process dies before or after its work, a node comes back under
               another id or without an answer: nothing is lost for good
spoiling       an answer is late, lost, altered or replayed: the client is left out of that round
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Context, Error, Message, RecordDict
from run_helpers import metrics_of, write_config

from fedsb import RunConfig, run
from fedsb.deploy import client_app, server_app
from fedsb.deploy.node_config import NodeConfig
from fedsb.deploy.open_node import OpenNode
from fedsb.deploy.records import facts_of, pack, payload_of
from fedsb.errors import RunFailed
from fedsb.federation import wire
from fedsb.federation.server import Failed
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort

DEADLINE_SECONDS = 0.4


class Killed(Exception):
    """The server process ended here."""


# Answers that must be left out


def _numbers(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[bytes], bytes]:
    def altered(message: bytes) -> bytes:
        header, vector = wire.unpack(message)
        return wire.pack(header, change(vector.clone()))

    return altered


def _one_infinite(vector: torch.Tensor) -> torch.Tensor:
    vector[len(vector) // 2] = float("inf")
    return vector


def _header(**fields: object) -> Callable[[bytes], bytes]:
    def altered(message: bytes) -> bytes:
        header, vector = wire.unpack(message)
        return wire.pack(wire.Header(**{**vars(header), **fields}), vector)

    return altered


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "NaN": _numbers(lambda v: v * float("nan")),
    "one infinite number": _numbers(_one_infinite),
    "wrong shape": _numbers(lambda v: v[:-1]),
    "wrong hash": _header(layout="0" * 16),
    "another client's": _header(client=77),
    "oversized": lambda m: m + b"\0" * 4_000_000,
    "cut off": lambda m: m[: len(m) // 2],
    "rubbish": lambda m: b"rubbish" * 9,
    "no examples": _header(num_examples=0),
}
SPOILING = [*CORRUPTIONS, "replayed", "late", "lost"]
INTERRUPTING = ["server killed", "client killed before", "client killed after", "node moved", "node forgot"]


@dataclass
class FaultyGrid(FakeGrid):
    """Each question draws whether something goes wrong with it, until `left` is used up.

    Attributes:
        happened: kind of fault -> how often.
    """

    rng: random.Random = field(default_factory=random.Random)
    kinds: tuple[str, ...] = (*SPOILING, *INTERRUPTING)
    probability: float = 0.3
    left: int = 4
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._helds = {node: OpenNode() for node in self.node_configs}
        self._former: dict[int, bytes] = {}
        self._late: dict[str, float] = {}
        self._unseen: Counter[int] = Counter()

    def get_node_ids(self) -> list[int]:
        seen = [node for node in self.node_configs if not self._unseen[node]]
        self._unseen -= Counter(self._unseen.keys())
        return seen

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        now = time.monotonic()
        return super().pull_messages([n for n in message_ids if self._late.get(n, 0.0) <= now])

    def _deliver(self, message: Message) -> str:
        kind = self._draw(str(facts_of(message.content)["kind"]))
        node = message.metadata.dst_node_id
        if kind is not None:
            self.left -= 1
            self.happened[kind] += 1
        if kind == "server killed":
            raise Killed
        client_app.held = self._helds.setdefault(node, OpenNode())
        if kind == "client killed before":
            self._helds[node] = OpenNode()
            return self._arrives(message, Message(Error(8, "stopped"), reply_to=message))
        name = super()._deliver(message)
        return self._spoiled(kind, node, name, message)

    def _draw(self, asked: str) -> str | None:
        if asked == "hello" or self.left <= 0 or self.rng.random() > self.probability:
            return None
        possible = [kind for kind in self.kinds if asked == "train" or kind in INTERRUPTING]
        return self.rng.choice(possible)

    def _arrives(self, message: Message, reply: Message) -> str:
        name = str(next(self._ids))
        message.metadata.__dict__["_message_id"] = name
        reply.metadata.__dict__["_reply_to_message_id"] = name
        self._replies[name] = reply
        return name

    def _spoiled(self, kind: str | None, node: int, name: str, message: Message) -> str:
        reply = self._replies[name]
        answer = b"" if reply.has_error() else payload_of(reply.content)
        if kind == "client killed after":
            self._helds[node] = OpenNode()
            self._replies[name] = Message(Error(8, "stopped"), reply_to=message)
        elif kind == "node forgot":
            del self._replies[name]
            self._unseen[node] = 2
        elif kind == "node moved":
            self._helds[node + 100] = self._helds.pop(node)
            self.node_configs[node + 100] = self.node_configs.pop(node)
        elif kind == "late":
            self._late[name] = time.monotonic() + 10 * DEADLINE_SECONDS
        elif kind == "lost":
            del self._replies[name]
        elif kind in CORRUPTIONS:
            reply.content = pack({}, CORRUPTIONS[kind](answer))
        elif kind == "replayed":
            reply.content = pack({}, self._former.get(node, b""))
        self._former[node] = answer
        return name


# A run with faults, and the one it must be equal to


@dataclass
class Outcome:
    """What became of one run.

    Attributes:
        stops: how often the run ended with a clear message and was resumed.
        left_out: clients left out, over all rounds.
        right: whether it is equal to the run without faults in which the same clients were left out.
    """

    happened: Counter[str]
    kills: int
    stops: list[str]
    left_out: int
    right: bool


def faulty_run(
    config: dict, files: dict[int, str], parts: list[list[int]], folder: Path, seed: int
) -> Outcome:
    """Do the run on a `FaultyGrid`, resuming it as often as it stops, and compare it."""
    grid = FaultyGrid(dict(files), rng=random.Random(seed))
    out, kills, stops = folder / "faulty", 0, list[str]()
    settings = {
        "config": str(write_config(folder / "run.yaml", config)),
        "out": str(out),
        "wait-seconds": 1.0,
    }
    for _ in range(20):
        try:
            server_app.app(grid, Context(1, 1, {}, RecordDict(), settings))
            break
        except Killed:
            kills += 1
        except RunFailed as reason:
            stops.append(str(reason))
    accepted = [line["clients"] for line in metrics_of(out)[1:]]
    left_out = sum(len(files) - len(clients) for clients in accepted)
    reference = without_faults(config, files, parts, folder, accepted)
    return Outcome(grid.happened, kills, stops, left_out, equal(out, reference))


def without_faults(
    config: dict, files: dict[int, str], parts: list[list[int]], folder: Path, accepted: list[list[int]]
) -> Path:
    """The folder of a run in which these clients, and no others, took part in each round."""
    helds, rounds = {client: OpenNode() for client in range(len(parts))}, iter(accepted)
    config_files = {client: folder / f"undisturbed{client}.yaml" for client in helds}
    for client, file in zip(helds, files.values(), strict=True):
        elsewhere = {"state": str(folder / f"undisturbed-state{client}")}
        write_config(config_files[client], NodeConfig.from_yaml(file).model_dump() | elsewhere)

    def ask(kind, cohort, message_to):
        present = next(rounds) if kind == "train" else list(cohort)

        def answer(client: int) -> bytes:
            node = helds[client].opened(kind, RunConfig.from_dict(config), config_files[client], "f" * 32)
            return node.answer(kind, message_to(client))

        yield from simulate_cohort([c for c in cohort if c in present], answer)
        yield from (Failed(c, "left out") for c in cohort if c not in present)

    target = folder / "undisturbed"
    run(RunConfig.from_dict(config), target, remote=RemoteClients([len(part) for part in parts], ask))
    return target


def equal(one: Path, other: Path) -> bool:
    """Whether two runs have the same scores after each round, and the same final state (relative, in L2).

    The order in which answers arrive is without effect; a client left out of one round makes 1e-1 (`LOG.md`).
    """
    for a, b in zip(metrics_of(one), metrics_of(other), strict=True):
        same = (a["round"], a["clients"]) == (b["round"], b["clients"])
        if not (same and a["eval"] == pytest.approx(b["eval"], abs=1e-6)):
            return False
    a, b = (load_checkpoint(run / "checkpoint").state for run in (one, other))
    return _close(a.vector, b.vector) and all(_close(t, b.base.total[n]) for n, t in a.base.total.items())


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= 1e-6 * other.norm())


def parts_of(simulated: Path) -> list[list[int]]:
    return list(json.loads((simulated / "partition.json").read_text())["clients"].values())
