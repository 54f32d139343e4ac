"""What `fedsb cost` adds to a method's numbers: control variates, Adam's moments, masks of secure sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsb.config.method import able_names
from fedsb.config.optimization_checks import lasting_moments
from fedsb.errors import InputError
from fedsb.federation.secure.sizes import session_bytes
from fedsb.federation.secure.summands import ONCE, ROUND_BITS
from fedsb.federation.secure.terms import Rules, Terms
from fedsb.methods import Method
from fedsb.methods.averaging.beside import MOMENTS

CONTROLS, AVERAGED, SECURE = "--control-variates", "--averaged-moments", "--secure-aggregation"
ABLE: dict[str, tuple[Callable[[Method], bool], str]] = {
    CONTROLS: (lambda m: m.sends_plainly, "does not send just what it trains in each step"),
    AVERAGED: (lambda m: lasting_moments(m), "does not train the same numbers in every round"),
    SECURE: (lambda m: m.averages and m.experts is None, "needs more of its clients' updates than their sum"),
}
"""Option -> the methods that go with it, and why another does not."""


@dataclass(frozen=True)
class Beside:
    """What travels beside a method's numbers.

    Attributes:
        control_variates: as `federation.control_variates`.
        averaged_moments: as `training.moments: averaged`.
        threshold: as `federation.secure_aggregation.threshold`; None: updates are not under masks.
    """

    control_variates: bool = False
    averaged_moments: bool = False
    threshold: float | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Those that were given."""
        given = {
            CONTROLS: self.control_variates,
            AVERAGED: self.averaged_moments,
            SECURE: self.threshold is not None,
        }
        return tuple(option for option, value in given.items() if value)

    @property
    def copies(self) -> int:
        """Numbers more for each number of an update, up and down."""
        return int(self.control_variates) + len(MOMENTS) * int(self.averaged_moments)

    def misfit(self, method: Method) -> str | None:
        """Why the method does not go with it; None: it does."""
        for option in self.options:
            able, why = ABLE[option]
            if not able(method):
                return f"{method.name}: {option} is not for it: it {why}; take one of {able_names(able)}"
        return None

    def round_bytes(self, clients: int, size: int) -> int:
        """Of masks, in a round whose updates have so many numbers."""
        return self._of_sum("train", 1, clients, size, ROUND_BITS)

    def start_bytes(self, clients: int, size: int) -> int:
        """Of masks, in the start's sum of so many numbers, and of its question, which is its name."""
        question = clients * len("contribute")
        return question + self._of_sum("contribute", 0, clients, size, ONCE[0]) if self.threshold else 0

    def _of_sum(self, kind: str, number: int, clients: int, size: int, bits: int) -> int:
        if self.threshold is None:
            return 0
        terms = Terms(kind, number, "0" * 32, tuple(range(clients)))
        return session_bytes(terms, Rules("", self.threshold, 1.0), size, bits=bits).total


def check_beside(beside: Beside, clients: int, upload_dtype: str) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: names them.
    """
    if beside.copies and len(beside.options) > 1:
        first, second = beside.options[:2]
        why = {
            AVERAGED: "control variates are for SGD, which has no such moments",
            SECURE: f"what {first} sends beside an update is not under masks",
        }
        raise InputError(f"{second}: {why[second]}; leave {first} or {second} out")
    threshold = beside.threshold
    if threshold is None:
        return
    if clients < 2:
        raise InputError(f"{SECURE}: the sum over 1 client is that client's update; take --clients 2 or more")
    if not 0.5 < threshold <= clients or (threshold > 1 and threshold != int(threshold)):
        raise InputError(
            f"{SECURE}: expected the share of clients that must stay, above 0.5 and at most 1, or how many, "
            f"at most {clients}; found {threshold:g}"
        )
    if upload_dtype != "float32":
        raise InputError(f"--upload-dtype: with {SECURE} updates are whole numbers of 32 bits; leave it out")
