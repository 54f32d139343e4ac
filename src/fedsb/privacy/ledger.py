"""What one run spent of its privacy budget: one line per release, on disk before the release leaves.

Nothing is ever taken back. A run that was killed and is resumed repeats a round with new noise, and that
round is then in here twice, as it should be: two results of it may have been seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fedsb.errors import InputError
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.lines import GrowingLines, locked, whole_lines

Phase = Literal["start", "round", "score"]
LEDGER = "privacy.jsonl"
"""Its name in a run folder."""


@dataclass(frozen=True)
class Spend:
    """One release.

    Attributes:
        client: whose examples it is about; None if it is about the clients themselves.
        round: 0 for the start; of a score the round that the scored model is the end of.
    """

    client: int | None
    phase: Phase
    round: int
    mechanism: Mechanism


class PrivacyLedger:
    """Spends in the order they were made, kept in a file of JSON lines that other processes may write too."""

    def __init__(self, path: Path):
        """Open the file; the first charge begins one.

        Raises:
            InputError: a line cannot be read.
        """
        self.path = path
        self._lines = GrowingLines(path, _spend)
        if path.exists():
            with self.held():
                os.truncate(path, len(whole_lines(path)))

    @property
    def spends(self) -> list[Spend]:
        """All so far, whoever made them.

        Raises:
            InputError: a line cannot be read.
        """
        return _readable(self._lines)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block nobody else charges this ledger, whose every byte was read again."""
        with locked([self.path]):
            _readable(self._lines, every_byte=True)
            yield

    def append(self, spend: Spend) -> None:
        """Write the spend down, inside `held`; it is on disk when this returns."""
        self._lines.append(json.dumps(asdict(spend) | {"mechanism": spend.mechanism.record}))

    def mechanisms(self, client: int | None, phase: Phase | None = None) -> list[Mechanism]:
        """What this client (or the clients as such) spent, in one phase or in all."""
        return [s.mechanism for s in self.spends if s.client == client and phase in (None, s.phase)]

    def times(self, client: int | None, phase: Phase, number: int) -> int:
        """How often this release was charged: more than once if it was repeated after a run was killed."""
        return sum((s.client, s.phase, s.round) == (client, phase, number) for s in self.spends)


def read_spends(path: Path) -> list[Spend]:
    """The spends of a ledger that someone else may be writing; none if there is no file.

    Raises:
        InputError: a line cannot be read.
    """
    return _readable(GrowingLines(path, _spend))


def paid_after(spends: Iterable[Spend], lines: Sequence[Mapping[str, Any]]) -> list[Spend]:
    """The releases of a round that is under way or was cut off, which is not among the whole ones.

    Args:
        lines: of metrics.jsonl, one for each whole round, 0 being the start; the start's has no scores at the
            clients until these are whole, too.
    """
    last = lines[-1] if lines else {}
    number, scored = last.get("round", -1), "sites" in last

    def ahead(spend: Spend) -> bool:
        return spend.round > number or (spend.round == number and spend.phase == "score" and not scored)

    return list(filter(ahead, spends))


def _readable(lines: GrowingLines[Spend], *, every_byte: bool = False) -> list[Spend]:
    try:
        return lines.read(every_byte=every_byte)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{lines.path}: this privacy ledger cannot be read ({error}). Restore it from a copy: without it "
            "nobody can say what was spent."
        ) from None


def _spend(line: bytes, before: list[Spend]) -> Spend:
    record = json.loads(line)
    return Spend(**record | {"mechanism": Mechanism(**record["mechanism"])})
