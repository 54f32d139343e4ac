"""What privacy adds to a run: the guard of its budget, and what is said about it.

`example_privacy` and `client_privacy` are the two units; `prepare_privacy` makes the one that a config names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Generic, Self, TypeVar

from fedsb.config.sections import PrivacyConfig
from fedsb.errors import InputError
from fedsb.federation.start.settings import PrivateStart
from fedsb.federation.training import ClientFailed, Train
from fedsb.privacy.account import BudgetSpent, Guard
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.keystream import GENERATOR
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ClientPlan, ExamplePlan, StartPlan
from fedsb.privacy.statement import statement
from fedsb.runner.private_state import SampleSecret

P = TypeVar("P", ExamplePlan, ClientPlan)


@dataclass(frozen=True, kw_only=True)
class PrivateRun(ABC, Generic[P]):
    """Plans and budget of one run. What a unit does not override is as without privacy.

    Attributes:
        samples: the secret behind Poisson batches and cohorts.
        plans: of the rounds, by the client whose account is charged; None: the server's, of all together.
        starts: of the clients' parts in private bases.
    """

    settings: PrivacyConfig
    guard: Guard
    noise: NoiseSource
    rounds: int
    samples: SampleSecret
    plans: Mapping[Any, P]
    starts: Mapping[Any, StartPlan]

    @property
    @abstractmethod
    def units(self) -> int:
        """How many units there are, of one client or of all, which delta is measured by."""

    @abstractmethod
    def trainer(self, client: int, number: int) -> Train:
        """What trains this client in this round in place of `training.train`; it declares no loss."""

    def charge_of(self, client: int) -> Mechanism | None:
        """What a round costs this client; None where it costs the server."""
        return None

    def release(self, client: int, number: int, make: Callable[[], bytes]) -> bytes:
        """A client's answer of this round, charged before it leaves.

        Raises:
            ClientFailed: the budget has no room, found before training if it can be; nothing leaves.
        """
        mechanism = self.charge_of(client)
        if mechanism is None:
            return make()
        try:
            self.guard.check(client, mechanism)
            answer = make()
            self.guard.charge(client, "round", number, mechanism)
        except BudgetSpent as spent:
            raise ClientFailed(str(spent)) from None
        return answer

    def expect(self, client: int, number: int) -> bool:
        """Charge, in the server's account of a client elsewhere, a question as answered; False: no room."""
        mechanism = self.charge_of(client)
        try:
            if mechanism is not None:
                self.guard.charge(client, "round", number, mechanism)
        except BudgetSpent:
            return False
        return True

    def private_start(self, *, elsewhere: bool = False) -> PrivateStart | None:
        """How clients protect their part of private bases; None where the start looks at no private rows.

        Args:
            elsewhere: clients keep their own accounts; here each one's sum counts once, however often asked.
        """
        return None

    def cohort(self, number: int) -> list[int] | None:
        """The Poisson cohort of a round, another one if it was charged before; None: the seeded one."""
        return None

    def server_release(self, number: int, clip_norm: float | None) -> ClientRelease | None:
        """What clips (None: to the config's norm) and noises this round's mean, charged; None: nothing."""
        return None

    def affords(self, cohort: Sequence[int]) -> bool:
        """Whether the budget has room for another round of at least one of these clients."""
        charged = {who: plan for who, plan in self.plans.items() if who is None or who in cohort}
        return any(self.guard.affords(who, plan.round) for who, plan in charged.items())

    def over_rows(self, rows: int) -> Self:
        """With plans that sample from so many rows."""
        return self

    def with_secret_samples(self) -> Self:
        """With batches of this answer alone: the same question asked twice at once, or of a state that was
        copied back, is never answered from one batch with two noises."""
        return replace(self, samples=self.samples.once())

    @property
    def used_up(self) -> str:
        """Why a client takes no part any more."""
        return f"its privacy budget of epsilon {self.guard.ceiling:g} is used up"

    def epsilon(self) -> float:
        """The largest over clients so far."""
        return max((self.guard.epsilon(who) for who in self.plans), default=0.0)

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

    def summary(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The section `privacy` of summary.json.

        Args:
            metrics: the lines of metrics.jsonl.
        """
        private, rounds_done = self.settings.insecure_seed is None, metrics[-1]["round"]
        per_client = {"all" if who is None else str(who): self._of(who) for who in self.plans}
        worst = max(per_client.values(), key=lambda of: of["epsilon"])
        facts = {
            "unit": self.settings.unit,
            "private": private,
            "epsilon": worst["epsilon"] if private else None,
            "delta": self.guard.delta,
            "accountant": f"PLD (dp-accounting {version('dp-accounting')})",
            "epsilon_rdp": worst["epsilon_rdp"] if private else None,
            "epsilon_start": worst["epsilon_start"] if private else None,
            "epsilon_rounds": worst["epsilon_rounds"] if private else None,
            "noise_multiplier": max(of["noise_multiplier"] for of in per_client.values()),
            "noise_source": f"{GENERATOR}, keys from the operating system" if private else "a fixed seed",
            "clip_norm": self.settings.clip_norm,
            "quantile": self.settings.quantile,
            "target_epsilon": self.settings.epsilon,
            "relation": f"one {self.settings.unit} present or blanked",
            "sampling": "Poisson",
            "units": self.units,
            "rounds": rounds_done,
            "stopped_early": rounds_done < self.rounds,
            "per_client": per_client,
        }
        facts |= self.cohort_facts(metrics)
        return facts | {"statement": statement(facts)}

    def cohort_facts(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is left of the claim against a reader of the cohorts, where they are secret."""
        return {}

    def _of(self, who: int | None) -> dict[str, Any]:
        ledger, delta = self.guard.ledger, self.guard.delta
        plan, start = self.plans[who], self.starts.get(who)
        spent = ledger.mechanisms(who)
        return {
            "epsilon": epsilon(spent, delta),
            "epsilon_rdp": epsilon(spent, delta, accountant="rdp"),
            "epsilon_start": self.guard.epsilon(who, "start"),
            "epsilon_rounds": self.guard.epsilon(who, "round"),
            "noise_multiplier": plan.noise_multiplier,
            "start_noise_multiplier": start.noise_multiplier if start else None,
            "sampling_probability": plan.sampling_probability,
            "steps": sum(m.steps for m in ledger.mechanisms(who, "round")),
        }
