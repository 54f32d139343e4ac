"""A federation whose nodes train nothing: real apps, real identities, made-up answers."""

from dataclasses import dataclass, field
from pathlib import Path

from fake_grid import FakeGrid
from keys import make_key, register
from run_helpers import write_config

from fedsb import RunConfig
from fedsb.deploy.node import NodeFacts
from fedsb.deploy.node_config import NodeConfig
from fedsb.deploy.nodes import Nodes
from fedsb.federation.server import Arrived

RUN = "0123456789abcdef" * 2
CONFIG = {
    "model": {"path": "m"},
    "task": {"kind": "classification", "text": ["note"], "labels": ["no", "yes"]},
    "data": {"train": "t.jsonl", "test": "e.jsonl"},
    "federation": {"clients": 3, "deadline_seconds": 0.2},
    "method": {"init": {"kind": "weights"}},
}


@dataclass
class StubNode:
    node_config: NodeConfig

    def facts(self):
        return NodeFacts(self.node_config.client, 20, "0123456789abcdef")

    def answer(self, kind, question):
        return b"%d: %s" % (self.node_config.client, question)


@dataclass
class StubHeld:
    """In place of `client_app.held`."""

    spoiled: bool = False

    def opened(self, kind, config, own_file, run):
        return StubNode(NodeConfig.from_yaml(own_file))

    def drop(self):
        pass


@dataclass
class StubNodes:
    """Three nodes, 100 to 102, with registered keys; more may be added.

    Attributes:
        said: what the server printed.
    """

    folder: Path
    signed: bool = True
    said: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.clients, self.grid = self.folder / "clients", FakeGrid({})
        for client in range(3):
            if self.signed:
                register(make_key(self.key(f"client-{client}")), client, self.clients)
            self.add(100 + client, client, f"client-{client}")
        keys = self.clients if self.signed else None
        self.federation = Nodes(self.grid, RunConfig.from_dict(CONFIG), RUN, self.said.append, keys=keys)

    def key(self, name):
        return self.folder / "keys" / name

    def add(self, node, client, key):
        """A node that says it is this client, and signs with this key; None: with none."""
        settings = {"client": client, "data": {"train": "t.jsonl"}, "state": "state"}
        settings |= {"key": str(self.key(key))} if self.signed and key else {}
        self.grid.node_configs[node] = str(write_config(self.folder / f"node-{node}.yaml", settings))

    def asked(self, question=b"q", cohort=(0, 1, 2)):
        """Client -> its answer, or the reason why there is none."""
        outcomes = list(self.federation.ask("train", cohort, lambda client: question))
        assert sorted(outcome.client for outcome in outcomes) == sorted(cohort)
        return {o.client: o.message if isinstance(o, Arrived) else o.reason for o in outcomes}

    def lines(self, about):
        return [line for line in self.said if about in line]
