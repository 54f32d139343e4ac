"""The budget of one data set over all runs, as one of these runs charges it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedsb.errors import InputError, UpdateRejected
from fedsb.privacy.accounting import COARSE_GRID, GRID_OF_LOSSES, Mechanism, epsilon
from fedsb.privacy.composition import epsilon_over_runs
from fedsb.privacy.data_ledger import Charge, DataLedger
from fedsb.privacy.ledger import Phase, PrivacyLedger, Spend


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
        release = [self._charge(Spend(None, "round", 0, mechanism), delta) for mechanism in mechanisms]
        return self._room(self._known(self.ledger.charges()), release)

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
        together, grids = [*charges, *more], (COARSE_GRID, GRID_OF_LOSSES)  # both bound it, the first is fast
        spent = (epsilon_of(together, self.largest_delta, grid=grid) for grid in grids)
        return any(bound <= self.largest_epsilon for bound in spent)

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
    """Epsilon of any one row (or client) over all these; 0 of none. At the largest delta of a run if None."""
    if not charges:
        return 0.0
    sessions: dict[str, dict[int | None, list[Mechanism]]] = {}
    for charge in charges:
        sessions.setdefault(charge.session, {}).setdefault(charge.client, []).append(charge.mechanism)
    delta = delta or max(charge.delta for charge in charges)
    return epsilon_over_runs([*sessions.values()], delta, grid=grid)


OF_THE_RUN = "its privacy budget of epsilon {:g} is used up"
OF_THE_ROWS = (
    "the budget of this party's rows over all runs (limits.lifetime_epsilon at the party) has no room for "
    "{}; ask for less, or let the party's owner raise it"
)


class BudgetSpent(UpdateRejected):
    """The next release would exceed the budget. The text may be sent: it has no number of the ledger."""


@dataclass(frozen=True)
class Guard:
    """The one gate that a noisy result passes: it is charged to the ledgers first, or it does not pass.

    Attributes:
        ceiling: the largest epsilon of this run; None only accounts.
        account: of the rows over all runs; None: this run alone is accounted for.
    """

    ledger: PrivacyLedger
    delta: float
    ceiling: float | None
    account: Account | None = None

    def epsilon(self, client: int | None, phase: Phase | None = None) -> float:
        """What this client (None: the clients as such) spent, in one phase or in all together."""
        return epsilon(self.ledger.mechanisms(client, phase), self.delta)

    def affords(self, client: int | None, mechanism: Mechanism) -> bool:
        """Whether the budget has room for this release now; `charge` alone decides."""
        try:
            self.check(client, mechanism)
        except BudgetSpent:
            return False
        return True

    def check(self, client: int | None, mechanism: Mechanism) -> None:
        """As `affords`.

        Raises:
            BudgetSpent: by which of the budgets.
        """
        self._check_run(client, mechanism)
        if self.account is not None and not self.account.affords([mechanism], self.delta):
            raise BudgetSpent(OF_THE_ROWS.format("another release"))

    def check_plan(self, mechanisms: Sequence[Mechanism]) -> None:
        """Refuse a run that has not begun and that the rows' budget has no room for as a whole.

        Raises:
            BudgetSpent: before anything was looked at.
        """
        account = self.account
        if account is not None and not account.has_begun() and not account.affords(mechanisms, self.delta):
            raise BudgetSpent(OF_THE_ROWS.format("this run"))

    def charge(self, client: int | None, phase: Phase, number: int, mechanism: Mechanism) -> None:
        """Charge a release of this round, in one step with the check. To be called before any of it leaves.

        Raises:
            BudgetSpent: nothing was charged, and nothing may leave.
            InputError: a ledger is not what it was; nothing may leave.
        """
        spend = Spend(client, phase, number, mechanism)
        with self.ledger.held():
            self._check_run(client, mechanism)
            if self.account is not None and not self.account.charge(spend, self.delta):
                raise BudgetSpent(OF_THE_ROWS.format("another release"))
            self.ledger.append(spend)

    def _check_run(self, client: int | None, mechanism: Mechanism) -> None:
        spent = [*self.ledger.mechanisms(client), mechanism]
        if self.ceiling is not None and epsilon(spent, self.delta) > self.ceiling:
            raise BudgetSpent(OF_THE_RUN.format(self.ceiling))
