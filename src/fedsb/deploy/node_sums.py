"""A node's side of secure sums: a `Member` whose keys and shares lie in the run's folder between questions.

The file is written before an answer leaves, so that whoever answers next, after a crash too, knows of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedsb.common.files import write_json
from fedsb.common.strict_json import parse_json
from fedsb.deploy.identity import read_registered, sign, verify
from fedsb.deploy.node_config import NodeConfig
from fedsb.errors import InputError
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.member import Held, Member, Verify
from fedsb.federation.secure.terms import SMALLEST_COHORT, Rules, Terms

FILE = "secure.json"
"""In the folder of a run: private keys and others' shares of the newest session; which rounds were given."""
log = logging.getLogger("fedsb")


@dataclass
class NodeSums:
    """The sums of one run.

    Attributes:
        file: what is kept. member: this party.
    """

    file: Path
    member: Member

    def answer(self, stage: str, question: bytes) -> bytes:
        """As `Member.answer`."""
        return self._kept(lambda member: member.answer(stage, question))

    def opened(self, kind: str, message: bytes) -> bytes:
        """As `Member.opened`."""
        return self._kept(lambda member: member.opened(kind, message))

    def masked(self, integers: np.ndarray, coding: FixedPoint) -> bytes:
        """As `Member.masked`."""
        return self._kept(lambda member: member.masked(integers, coding))

    @property
    def terms(self) -> Terms:
        """Of the session that is open."""
        assert self.member.held is not None
        return self.member.held.terms

    def _kept(self, act: Callable[[Member], bytes]) -> bytes:
        self._read()
        answer = act(self.member)
        write_json(self.file, _record(self.member), private=True)
        return answer

    def _read(self) -> None:
        if not self.file.exists():
            return
        try:
            record = parse_json(self.file.read_text(encoding="utf-8"))
            self.member.given = {kind: (number, times) for kind, (number, times) in record["given"].items()}
            self.member.held = record["held"] and _held(record["held"])
        except Exception as error:
            raise InputError(
                f"{self.file}: cannot be read ({type(error).__name__}); restore it. If it is removed, rounds "
                "that were given may be asked again"
            ) from None


def node_sums(node: NodeConfig, rules: Rules, folder: Path) -> NodeSums:
    """What this party needs for the secure sums of the run with these rules.

    Raises:
        InputError: the folder of peers is wrong.
    """
    if node.peers is None:
        log.warning(
            "fedsb: node.yaml names no peers, so the server could play the other parties and read this one's "
            "updates; put the others' public keys into a folder and name it in peers"
        )
    fewest = node.limits.smallest_cohort or SMALLEST_COHORT
    signs = None if node.key is None else partial(sign, node.key)
    verifies = None if node.peers is None else _verify(node.peers)
    member = Member(node.client, rules, fewest, signs, verifies)
    return NodeSums(folder / FILE, member)


def _verify(folder: str) -> Verify:
    keys = read_registered(folder)

    def signed(client: int, signature: bytes, text: bytes) -> bool:
        return client in keys and verify(keys[client], signature, text)

    return signed


def _record(member: Member) -> dict[str, Any]:
    held = member.held and {name: _written(value) for name, value in vars(member.held).items()}
    return {"given": member.given, "held": held}


def _written(value: Any) -> Any:
    if isinstance(value, Terms):
        return asdict(value)
    if isinstance(value, dict):
        return {str(client): content.hex() for client, content in value.items()}
    return value.hex() if isinstance(value, bytes) else value


def _held(record: dict[str, Any]) -> Held:
    kinds = {of.name: of.type for of in fields(Held)}
    return Held(**{name: _restored(value, str(kinds[name])) for name, value in record.items()})


def _restored(value: Any, kind: str) -> Any:
    if kind == "Terms":
        return Terms(**value | {"cohort": tuple(value["cohort"])})
    if kind.startswith("dict"):
        return {int(client): bytes.fromhex(content) for client, content in value.items()}
    if kind == "bytes":
        return bytes.fromhex(value)
    return tuple(value) if kind.startswith("tuple") else value
