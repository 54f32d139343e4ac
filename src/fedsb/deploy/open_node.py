"""The open node of a process that lasts: kept from one message to the next where that changes no answer.

A node is opened again, as a fresh process would open it, when the run, its config, this party's config or
rows have changed, when a node that has trained is asked anything else than to train, and after a failure.
Nothing of a former node is left in memory then.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsb.config import RunConfig
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig
from fedsb.federation.secure.messages import STAGES
from fedsb.runner.clients import ADAPTED


@dataclass
class OpenNode:
    """At most one open node, and what it was opened from.

    Attributes:
        trained: whether its last question was to train, or to look through what it trained.
        spoiled: whether something failed that nobody foresaw; a process that can should end itself.
    """

    node: Node | None = None
    trained: bool = False
    spoiled: bool = False
    _opened_from: tuple[Any, ...] = ()

    def opened(self, kind: str, config: RunConfig, file: str | Path, run: str) -> Node:
        """The node that answers a question of this kind.

        Raises:
            InputError: as `NodeConfig.from_yaml` and `Node`.
        """
        node_config = NodeConfig.from_yaml(file)
        data = node_config.data
        stamps = [_stamp(rows) for rows in (data.train, data.public) if rows is not None]
        opened_from = (config.model_dump_json(), node_config.model_dump_json(), run, stamps)
        other = self.trained and kind not in (*ADAPTED, *STAGES)
        if self.node is None or opened_from != self._opened_from or other:
            self.drop()
            self.node, self._opened_from = Node(config, node_config, run), opened_from
        self.trained = self.trained if kind in STAGES and self.trained else kind in ADAPTED
        return self.node

    def drop(self) -> None:
        """Let go of the node and its model."""
        if self.node is None:
            return
        self.node, self.trained, self._opened_from = None, False, ()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _stamp(rows: str) -> tuple[int, ...]:
    """Differs when the file was written again; empty if there is no such file."""
    try:
        status = Path(rows).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
