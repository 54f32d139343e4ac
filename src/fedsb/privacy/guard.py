"""The one gate that a noisy result passes: it is charged to the ledger first, or it does not pass."""

from __future__ import annotations

from dataclasses import dataclass

from fedsb.errors import FedsbError
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.ledger import Phase, PrivacyLedger, Spend


class BudgetSpent(FedsbError):
    """The next release would exceed the budget."""


@dataclass(frozen=True)
class Guard:
    """A budget and what was spent of it.

    Attributes:
        ceiling: the largest epsilon allowed; None only accounts.
    """

    ledger: PrivacyLedger
    delta: float
    ceiling: float | None

    def epsilon(self, client: int | None, phase: Phase | None = None) -> float:
        """Spent by this client (None: by the clients as such), in one phase or in all together."""
        return epsilon(self.ledger.mechanisms(client, phase), self.delta)

    def affords(self, client: int | None, mechanism: Mechanism) -> bool:
        """Whether the budget has room for this release."""
        if self.ceiling is None:
            return True
        return epsilon([*self.ledger.mechanisms(client), mechanism], self.delta) <= self.ceiling

    def charge(self, client: int | None, phase: Phase, number: int, mechanism: Mechanism) -> None:
        """Pay for a release of this round. To be called before anything of it leaves.

        Raises:
            BudgetSpent: nothing was charged, and nothing may leave.
        """
        if not self.affords(client, mechanism):
            raise BudgetSpent(f"its privacy budget of epsilon {self.ceiling:g} is used up")
        self.ledger.charge(Spend(client, phase, number, mechanism))
