"""The one gate that a noisy result passes: it is charged to the ledgers first, or it does not pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsb.errors import UpdateRejected
from fedsb.privacy.account import Account
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.ledger import Phase, PrivacyLedger, Spend

OF_THE_RUN = "its privacy budget of epsilon {:g} is used up"
OF_THE_ROWS = (
    "the budget of this party's rows over all runs (limits.lifetime_epsilon at the party) has no room for "
    "{}; ask for less, or let the party's owner raise it"
)


class BudgetSpent(UpdateRejected):
    """The next release would exceed the budget. The text may be sent: it has no number of the ledger."""


@dataclass(frozen=True)
class Guard:
    """A run's budget and what was spent of it, read from the files at every question.

    Attributes:
        ceiling: the largest epsilon of this run; None only accounts.
        account: of the rows over all runs; None: this run alone is accounted for.
    """

    ledger: PrivacyLedger
    delta: float
    ceiling: float | None
    account: Account | None = None

    def epsilon(self, client: int | None, phase: Phase | None = None) -> float:
        """Spent by this client (None: by the clients as such), in one phase or in all together."""
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
