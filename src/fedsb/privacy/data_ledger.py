"""The ledger of one data set: every release about its rows, in a file that cannot shrink or change unseen.

A line holds the SHA-256 of itself and of the chain before it. Where the chain ends is kept in other files
too, its heads: a ledger that does not reach one of them was cut, removed, or put back from a copy. One that
goes beyond a head was charged by a process that was killed before it could write the head. What cannot be
seen: a ledger that was put back together with all of its heads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsb.common.files import write_json
from fedsb.errors import InputError
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.ledger import Phase
from fedsb.privacy.lines import GrowingLines, locked

SIMULATED = "simulated"
CURE = (
    "Nothing was released. Put its newest copy back; if there is none, nobody can say what these rows have "
    "spent, and their budget counts as used up"
)


@dataclass(frozen=True)
class Charge:
    """One release, as a line of the ledger.

    Attributes:
        at: when, UTC.
        run: its name. session: the process that charged it, by a random name; in simulated runs the numbers
            of clients mean the same rows within one session alone.
        rows: SHA-256 of the rows' file at that time; empty where there is no one file.
        unit: whose presence was hidden. client: whose rows it is about; None: all of them.
        delta: of the run. mechanism: without noise where the noise was no secret.
        chain: SHA-256 of the chain before this line and of this line.
    """

    at: str
    run: str
    session: str
    rows: str
    unit: str
    client: int | None
    phase: Phase
    round: int
    mechanism: Mechanism
    delta: float
    chain: str = ""

    def line(self) -> dict[str, Any]:
        return asdict(self) | {"mechanism": self.mechanism.record}


@dataclass(frozen=True)
class Head:
    """Where a chain ended: its releases and its last hash; the data set's id, and the rows' file then."""

    id: str
    releases: int
    chain: str
    rows: str


Heads = dict[str, Head]
"""Ledger's file -> its head. A ledger that was moved has one under its former place too."""


@dataclass(frozen=True)
class Place:
    """Where a data set's ledger lies.

    Attributes:
        id: the name of the data set.
        heads: files that say where the chain ends; the first must be written, others where that is allowed.
        locks: files that are held while it is charged; the first, in the ledger's folder, is made.
    """

    id: str
    ledger: Path
    heads: tuple[Path, ...]
    locks: tuple[Path, ...]


def place_beside(ledger: Path) -> Place:
    """The place for a simulated data set: all that belongs to its ledger lies beside it."""
    head, lock = (ledger.with_name(f".{ledger.name}.{kind}") for kind in ("head", "lock"))
    return Place(SIMULATED, ledger, (head,), (lock,))


def place_at_node(state: Path, name: str, rows: Path) -> Place:
    """The place for a node's rows: in its state folder, with a second head beside the rows' file.

    The rows' file is held too, where it may be written: two state folders cannot charge it at once.
    """
    folder = state / "ledgers"
    heads = (folder / f".{name}.head", rows.with_name(f".{rows.name}.privacy-head"))
    held = (rows,) if os.access(rows, os.W_OK) else ()
    return Place(name, folder / f"{name}.jsonl", heads, (folder / ".lock", *held))


class DataLedger:
    """Reads and charges the ledger at a place.

    Args:
        only: refuse rows that were charged in a ledger elsewhere too: this one would not say it all.
    """

    def __init__(self, place: Place, *, only: bool = True):
        self.place, self._only = place, only
        self._lines = GrowingLines(place.ledger, self._parse)

    def charges(self, *, every_byte: bool = False) -> list[Charge]:
        """All so far, in order, once chain and heads agree.

        Raises:
            InputError: the ledger is not what it was: which file knows more, and what can be done.
        """
        heads = self._heads()  # before the ledger, which another process may be charging
        try:
            charges = self._lines.read(every_byte=every_byte)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{self.place.ledger}: this privacy ledger is broken: {error}. {CURE}") from None
        for file, ledger, head in heads:
            self._check_reaches(charges, file, ledger, head)
        if len(charges) > 1 and not heads:
            beside = " and ".join(map(str, self.place.heads))
            raise InputError(
                f"{self.place.ledger}: the files that say where this privacy ledger ends are gone "
                f"({beside}): it cannot be told whether it is whole. {CURE}"
            )
        return charges

    @contextmanager
    def held(self) -> Iterator[list[Charge]]:
        """Inside the block no other process charges this ledger; gives its charges, every byte read again."""
        with locked(self.place.locks):
            yield self.charges(every_byte=True)

    def append(self, charge: Charge, before: list[Charge]) -> None:
        """One more, inside `held`; it and the heads are on disk when this returns."""
        charge = replace(charge, chain=_chain(self._end(before), charge.line()))
        self._lines.append(json.dumps(charge.line()))
        head = {str(self.place.ledger): Head(self.place.id, len(before) + 1, charge.chain, charge.rows)}
        first, *others = self.place.heads
        _write_heads(first, _read_heads(first) | head)
        for file in others:
            with suppress(OSError):  # rows that may only be read
                _write_heads(file, _read_heads(file) | head)

    def other_names(self, rows: str) -> list[str]:
        """Other ids under which the file of this digest was charged, as far as is known here."""
        folder = self.place.ledger.parent
        heads = [*folder.glob(".*.head"), *self.place.heads]
        known = {(head.id, head.rows) for file in heads for head in _read_heads(file).values()}
        for file in folder.glob("*.jsonl"):
            lines = GrowingLines(file, lambda line, before: str(json.loads(line)["rows"]))
            known |= {(file.stem, digest) for digest in lines.read()}
        return sorted({name for name, digest in known if digest == rows and name != self.place.id})

    def _heads(self) -> list[tuple[Path, Path, Head]]:
        """(file, ledger, head) of all that are about this data set."""
        files = ((file, _read_heads(file)) for file in self.place.heads)
        known = [(file, Path(name), head) for file, heads in files for name, head in heads.items()]
        return [entry for entry in known if entry[2].id == self.place.id]

    def _check_reaches(self, charges: list[Charge], file: Path, ledger: Path, head: Head) -> None:
        here, count = self.place.ledger, len(charges)
        elsewhere = ledger != here and file != self.place.heads[0]
        if elsewhere and not self._only:
            return
        where = f" (in {ledger}, another state folder)" if elsewhere else ""
        if count < head.releases:
            state = f"holds {count} releases" if count else "is gone or empty"
            raise InputError(
                f"{here}: this privacy ledger {state}, and {file} knows of {head.releases}{where}: it was "
                f"cut or removed, or another copy or state folder took its place. {CURE}"
            )
        if head.releases and charges[head.releases - 1].chain != head.chain:
            raise InputError(
                f"{here}: line {head.releases} of this privacy ledger is not the one that {file} knows"
                f"{where}: another ledger took its place. {CURE}"
            )

    def _parse(self, line: bytes, before: list[Charge]) -> Charge:
        record = json.loads(line)
        charge = Charge(**record | {"mechanism": Mechanism(**record["mechanism"])})
        if charge.chain != _chain(self._end(before), record):
            raise ValueError(f"line {len(before) + 1} does not follow from what comes before it")
        return charge

    def _end(self, charges: list[Charge]) -> str:
        return charges[-1].chain if charges else hashlib.sha256(self.place.id.encode()).hexdigest()


def _chain(before: str, line: dict[str, Any]) -> str:
    content = json.dumps({key: value for key, value in line.items() if key != "chain"})
    return hashlib.sha256(f"{before} {content}".encode()).hexdigest()


def _read_heads(file: Path) -> Heads:
    """The heads in this file; none if there is no file."""
    try:
        return {ledger: Head(**head) for ledger, head in json.loads(file.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: the head of a privacy ledger cannot be read: {error}. {CURE}") from None


def _write_heads(file: Path, heads: Heads) -> None:
    """Whole or not at all, for this user alone."""
    write_json(file, {ledger: asdict(head) for ledger, head in heads.items()}, private=True)
