"""The one door of a node: every answer passes it as a disclosure, which says what the answer gives away.

    PublicFacts          nothing that was computed from this party's private rows
    NoisedRelease        noised, and charged to the ledger before it leaves
    UnprotectedUpdate    neither: only where this party's owner allows that

Noised and unprotected answers are made inside the door, so that one which may not leave is never computed,
and one that is charged was charged while exactly it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsb.deploy.node_config import Refused
from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation.training import ClientFailed
from fedsb.privacy.account import BudgetSpent
from fedsb.privacy.ledger import Spend
from fedsb.runner.private_run import PrivateRun

Make = Callable[[], bytes]


@dataclass(frozen=True)
class PublicFacts:
    """An answer in which nothing depends on what private rows hold; how many there are is public."""

    message: bytes


@dataclass(frozen=True)
class NoisedRelease:
    """An answer with noise in it.

    Attributes:
        make: charges and makes it; or gives again what was charged, if `again`.
        charge: what the ledger must have gained once it is made.
    """

    make: Make
    charge: Spend
    again: bool = False


@dataclass(frozen=True)
class UnprotectedUpdate:
    """An answer made of private rows without noise of this party's own."""

    make: Make


Disclosure = PublicFacts | NoisedRelease | UnprotectedUpdate


@dataclass(frozen=True)
class Door:
    """What lets a party's disclosures out.

    Attributes:
        unprotected: why an unprotected update is refused; None: its owner allows them.
        private: the plan, the noise and the ledger of this run; None without privacy.
    """

    unprotected: str | None
    private: PrivateRun | None

    def let_out(self, disclosure: Disclosure) -> bytes:
        """The bytes that may leave.

        Raises:
            Refused: this party gives no such answer; nothing was computed.
            ClientFailed: the budget has no room, or making the answer failed; what was looked at is charged.
            UpdateRejected: the question does not fit; no row was looked at.
        """
        if isinstance(disclosure, PublicFacts):
            return disclosure.message
        if isinstance(disclosure, NoisedRelease):
            return self._noised(disclosure)
        if not isinstance(disclosure, UnprotectedUpdate):
            raise TypeError(f"no disclosure, so nothing leaves: {type(disclosure).__name__}")
        if self.unprotected is not None:
            raise Refused(self.unprotected)
        return disclosure.make()

    def _noised(self, release: NoisedRelease) -> bytes:
        private, charge = self.private, release.charge
        noised = charge.mechanism.noise_multiplier > 0
        if private is None or private.noise.insecure_seed is not None or not noised:
            return self.let_out(UnprotectedUpdate(release.make))
        before = 0 if release.again else self._times(private, charge)
        try:
            message = release.make()
        except BudgetSpent as spent:
            raise ClientFailed(str(spent)) from None
        except UpdateRejected:
            raise
        except BaseException:
            self._charge_failure(private, charge, before)
            raise
        if self._times(private, charge) <= before:
            raise RunFailed("privacy: an answer was made that its ledger was not charged for; it stays here")
        return message

    def _charge_failure(self, private: PrivateRun, charge: Spend, before: int) -> None:
        """A failure after rows were looked at may tell of them (how long they took): it costs the same."""
        client, mechanism = charge.client, charge.mechanism
        if self._times(private, charge) <= before and private.guard.affords(client, mechanism):
            private.guard.charge(client, charge.phase, charge.round, mechanism)

    def _times(self, private: PrivateRun, charge: Spend) -> int:
        """How often the ledger has exactly this charge."""
        ledger = private.guard.ledger
        number = ledger.times(charge.client, charge.phase, charge.round)
        return number if charge.mechanism in ledger.mechanisms(charge.client, charge.phase) else 0
