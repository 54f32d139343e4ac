"""What privacy adds to a run: its plans, the guard of its budget, and what a client does under them.

Which unit is protected shows in the plans: each client's of its examples, or the server's of whole clients.
What is of one unit alone is in `example_privacy` and `client_privacy`; `prepare_privacy` makes the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.errors import InputError, RunFailed
from fedsb.federation.canaries import Canaries, RowCanaries
from fedsb.federation.private_training import train_privately
from fedsb.federation.scores import AddNoise
from fedsb.federation.stacked_private import PrivateWay
from fedsb.federation.training import ClientFailed, Train, train
from fedsb.privacy.account import BudgetSpent, Guard
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.correlated import Correlated
from fedsb.privacy.ledger import Phase
from fedsb.privacy.noise import NoiseSource, add_noise
from fedsb.privacy.plan import ClientPlan, ExamplePlan, ScorePlan, StartPlan
from fedsb.runner.private_state import SampleSecret


@dataclass(frozen=True, kw_only=True)
class PrivateRun:
    """Plans and budget of one run.

    Attributes:
        samples: the secret behind Poisson batches and cohorts.
        plans: client -> the plan of its rounds; empty where the unit is a whole client.
        starts: client -> the plan of its part in private bases.
        scores: client -> the plan of its scores, of those that have rows for them.
        server_plan: of rounds in which the server protects whole clients; None where the unit is an example.
        max_length: tokens that an example may have.
        canaries: client -> units of nobody in its steps, in an audit.
    """

    settings: PrivacyConfig
    guard: Guard
    noise: NoiseSource
    rounds: int
    samples: SampleSecret
    plans: Mapping[int, ExamplePlan]
    starts: Mapping[int, StartPlan]
    scores: Mapping[int, ScorePlan]
    server_plan: ClientPlan | None
    max_length: int
    canaries: Mapping[int, Canaries | RowCanaries] = field(default_factory=dict)

    @property
    def accounts(self) -> dict[int | None, ExamplePlan | ClientPlan]:
        """The plans by the client whose account is charged; None: the server's, of all together."""
        if self.server_plan is not None:
            return {None: self.server_plan}
        return {client: plan for client, plan in self.plans.items()}

    @property
    def shared_plan(self) -> ClientPlan | ExamplePlan | None:
        """What says how clients share a round's noise, the same for all of them; None: they do not."""
        return next((plan for plan in self.accounts.values() if plan.fewest is not None), None)

    @property
    def sums_gradients(self) -> bool:
        """Whether a client's answer in a round is the sum of its clipped gradients, to be noised as it is
        added up."""
        return self.server_plan is None and self.shared_plan is not None

    def trainer(self, client: int, number: int) -> Train:
        """What trains this client in this round in place of `training.train`; it declares no loss."""
        if client not in self.plans:
            return _without_loss
        way = self.way(client, number)
        how = partial(train_privately, plan=way.plan, noise=way.noise, coins=way.coins)
        return partial(how, canaries=self.canaries.get(client), correlated=way.correlated)

    def way(self, client: int, number: int) -> PrivateWay:
        """How this client, one with a plan, trains in this round.

        Raises:
            ClientFailed: it must not.
        """
        self.check_not_begun(client, number)
        repeat, plan = self.guard.ledger.times(client, "round", number), self.plans[client]
        coins = self.samples.stream("poisson", number, client, repeat)
        first = (number - 1) * plan.steps_per_round
        return PrivateWay(plan, self.noise, coins, self.correlated(client, plan, first))

    def correlated(self, client: int | None, plan: ExamplePlan | ClientPlan, first: int) -> Correlated | None:
        """The noise of the steps from this one on, that cancels with those before it; None: it is
        independent.

        It comes from the run's secret, so that a run that is resumed goes on with the same.
        """
        if not plan.column:
            return None
        return Correlated(plan.column, first, lambda step: self.samples.stream("banded", str(client), step))

    def check_not_begun(self, client: int | None, number: int) -> None:
        """Refuse to repeat a round whose noise is correlated: one noise would cover two results.

        Raises:
            ClientFailed, or RunFailed at the server: it was charged before.
        """
        plan = self.accounts.get(client)
        if plan is not None and plan.column and self.guard.ledger.times(client, "round", number):
            raise (RunFailed if client is None else ClientFailed)(
                "privacy.mechanism: banded: this round was begun before and its noise was used; the run ends "
                "here. Start another one"
            )

    def score_noise(self, client: int, number: int, sensitivity: float) -> AddNoise:
        """What noises the counts of this client's score after this round.

        sensitivity: of all counts together to one row that is blanked, in L2.
        """
        std = self.scores[client].noise_multiplier * sensitivity
        return lambda counts: add_noise(counts, std, self.noise.stream("score", client, number))

    def charge_of(self, client: int, number: int, phase: Phase = "round") -> Mechanism | None:
        """What this round, or the score after it, costs this client; None where it costs the server, or
        nothing."""
        if phase == "score":
            return self.scores[client].release if client in self.scores else None
        return self.plans[client].of_round(number) if client in self.plans else None

    def release(self, client: int, number: int, make: Callable[[], bytes], phase: Phase = "round") -> bytes:
        """A client's answer in this round, or its score after it, charged before it leaves.

        Raises:
            ClientFailed: the budget has no room, found before training if it can be; nothing leaves.
        """
        mechanism = self.charge_of(client, number, phase)
        if mechanism is None:
            return make()
        try:
            self.guard.check(client, mechanism)
            answer = make()
            self.guard.charge(client, phase, number, mechanism)
        except BudgetSpent as spent:
            raise ClientFailed(str(spent)) from None
        return answer

    def check_room(self, client: int, number: int) -> None:
        """Refuse a round that the client's budget has no room for.

        Raises:
            ClientFailed: it has none.
        """
        mechanism = self.charge_of(client, number)
        try:
            if mechanism is not None:
                self.guard.check(client, mechanism)
        except BudgetSpent as spent:
            raise ClientFailed(str(spent)) from None

    def expect(self, client: int, number: int, phase: Phase = "round") -> bool:
        """Charge, in the server's account of a client elsewhere, a question as answered; False: no room."""
        mechanism = self.charge_of(client, number, phase)
        try:
            if mechanism is not None:
                self.guard.charge(client, phase, number, mechanism)
        except BudgetSpent:
            return False
        return True

    def affords(self, cohort: Sequence[int], number: int) -> bool:
        """Whether the budget has room for this round of at least one of these clients."""
        charged = {who: plan for who, plan in self.accounts.items() if who is None or who in cohort}
        return any(self.guard.affords(who, plan.of_round(number)) for who, plan in charged.items())

    def with_secret_samples(self) -> PrivateRun:
        """With batches of this answer alone: the same question asked twice at once, or of a state that was
        copied back, is never answered from one batch with two noises."""
        return replace(self, samples=self.samples.once())

    @property
    def used_up(self) -> str:
        """Why a client takes no part any more."""
        return f"its privacy budget of epsilon {self.guard.ceiling:g} is used up"

    def epsilon(self) -> float:
        """The largest over clients so far."""
        return max((self.guard.epsilon(who) for who in self.accounts), default=0.0)

    def check_ledger(self, last_epsilon: float | None) -> None:
        """Refuse to resume on a ledger that knows of less than was reported.

        Raises:
            InputError: lines are missing.
        """
        now = self.epsilon()
        if last_epsilon is not None and now < last_epsilon * (1 - 1e-9):
            raise InputError(
                f"{self.guard.ledger.path}: this privacy ledger adds up to epsilon {now:.4g}, but the run "
                f"had reported {last_epsilon:.4g}: lines are missing. Restore it from a copy."
            )


def _without_loss(*args: Any, **more: Any) -> None:
    train(*args, **more)
