"""The budget of one data set over all runs, as one of these runs charges it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedsb.errors import InputError
from fedsb.privacy.accounting import COARSE_GRID, GRID_OF_LOSSES, Mechanism
from fedsb.privacy.composition import epsilon_over_runs
from fedsb.privacy.data_ledger import Charge, DataLedger
from fedsb.privacy.ledger import Spend


@dataclass(frozen=True)
class Account:
    """A data set's ledger, and the run that charges it.

    Attributes:
        run: its name. unit: whose presence it hides.
        rows: SHA-256 of the rows' file as it is now; empty where there is no one file.
        largest_epsilon: over all runs; None only accounts.
        largest_delta: at which epsilon is taken; None: the largest that any of the runs has.
        one_client: all rows are one client's, whatever its number in a run.
        secret_noise: False counts every release as one without noise.
    """

    ledger: DataLedger
    run: str
    unit: str
    rows: str = ""
    largest_epsilon: float | None = None
    largest_delta: float | None = None
    one_client: bool = False
    secret_noise: bool = True
    session: str = field(default_factory=lambda: secrets.token_hex(8))

    def check(self) -> None:
        """Refuse a ledger that this run may not charge, before it begins.

        Raises:
            InputError: as `charge`.
        """
        self._known(self.ledger.charges())

    def has_begun(self) -> bool:
        """Whether this run was charged before."""
        return any(charge.run == self.run for charge in self._known(self.ledger.charges()))

    def affords(self, mechanisms: Iterable[Mechanism], delta: float) -> bool:
        """Whether there is room for these of one client now; `charge` alone decides.

        Raises:
            InputError: as `charge`.
        """
        release = [Spend(None, "round", 0, mechanism) for mechanism in mechanisms]
        return self._room(self._known(self.ledger.charges()), [self._charge(s, delta) for s in release])

    def charge(self, spend: Spend, delta: float) -> bool:
        """Charge a release of the run at its delta, or do not: in one step, whoever else is charging.

        False if there is no room for it: nothing was charged.

        Raises:
            InputError: the ledger is not what it was, or about another unit, or these rows have another id.
        """
        with self.ledger.held() as charges:
            charge = self._charge(spend, delta)
            if not self._room(self._known(charges), [charge]):
                return False
            self.ledger.append(charge, charges)
            return True

    def _charge(self, spend: Spend, delta: float) -> Charge:
        noise = spend.mechanism.noise_multiplier if self.secret_noise else 0.0
        return Charge(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            run=self.run,
            session=self.session,
            rows=self.rows,
            unit=self.unit,
            client=None if self.one_client else spend.client,
            phase=spend.phase,
            round=spend.round,
            mechanism=spend.mechanism._replace(noise_multiplier=noise),
            delta=delta,
        )

    def _room(self, charges: Sequence[Charge], more: Sequence[Charge]) -> bool:
        if self.largest_epsilon is None:
            return True
        grids, everything = (
            (COARSE_GRID, GRID_OF_LOSSES),
            [*charges, *more],
        )  # both bound it, the first is fast
        spent = (epsilon_of(everything, self.largest_delta, grid=grid) for grid in grids)
        return any(each <= self.largest_epsilon for each in spent)

    def _known(self, charges: list[Charge]) -> list[Charge]:
        """These, once it is clear that they are about the same rows and the same unit."""
        place = self.ledger.place
        units = {charge.unit for charge in charges} - {self.unit}
        if units:
            raise InputError(
                f"{place.ledger}: this privacy ledger is about every {units.pop()}; a run with privacy.unit: "
                f"{self.unit} does not add up with that. Give it a ledger of its own"
            )
        if self.rows and (names := self.ledger.other_names(self.rows)):
            raise InputError(
                f"data.id: the rows of {place.id!r} were charged as {names[0]!r} before, and a new name is "
                f"no new budget. Set data.id: {names[0]}"
            )
        return charges


def epsilon_of(
    charges: Sequence[Charge], delta: float | None = None, *, grid: float = GRID_OF_LOSSES
) -> float:
    """Of any one row (or client) over all these, at delta; None: at the largest that a run had. 0 of none."""
    if not charges:
        return 0.0
    sessions: dict[str, dict[int | None, list[Mechanism]]] = {}
    for charge in charges:
        sessions.setdefault(charge.session, {}).setdefault(charge.client, []).append(charge.mechanism)
    delta = delta or max(charge.delta for charge in charges)
    return epsilon_over_runs([*sessions.values()], delta, grid=grid)
