"""What privacy adds to a run: each client's plan, the guard of the budget, and what is said about both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsb.common.seeding import numpy_generator
from fedsb.config import RunConfig
from fedsb.config.privacy_checks import check_delta
from fedsb.config.sections import PrivacyConfig
from fedsb.errors import InputError
from fedsb.federation.cohort import cohort
from fedsb.federation.private_training import train_privately
from fedsb.federation.start.contribution import PrivateStart
from fedsb.federation.training import ClientFailed, LocalTraining, Train, train
from fedsb.privacy.account import Account, BudgetSpent, Guard
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.data_ledger import DataLedger, place_beside
from fedsb.privacy.keystream import GENERATOR
from fedsb.privacy.ledger import LEDGER, PrivacyLedger
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ClientPlan, ExamplePlan, StartPlan
from fedsb.privacy.statement import statement
from fedsb.runner.arguments import local_training
from fedsb.runner.private_state import SampleSecret


@dataclass(frozen=True)
class PrivateRun:
    """Plans and budget of one run.

    Attributes:
        examples, starts: plans by client (unit: example).
        clients: the server's plan (unit: client).
        samples: the secret behind Poisson batches and cohorts.
        max_length: tokens that an example may have.
    """

    wanted: PrivacyConfig
    guard: Guard
    noise: NoiseSource
    rounds: int
    examples: Mapping[int, ExamplePlan]
    starts: Mapping[int, StartPlan]
    clients: ClientPlan | None
    samples: SampleSecret
    max_length: int

    def with_secret_samples(self) -> PrivateRun:
        """With batches of this answer alone: the same question asked twice at once, or of a state that was
        copied back, is never answered from one batch with two noises."""
        return replace(self, samples=self.samples.once())

    def trainer(self, client: int, number: int) -> Train:
        """What trains this client in this round in place of `client.train`; it declares no loss."""
        if self.clients is not None:
            return _without_loss
        repeat = self.guard.ledger.times(client, "round", number)
        return partial(
            train_privately,
            plan=self.examples[client],
            noise=self.noise,
            coins=self.samples.stream("poisson", number, client, repeat),
        )

    def release(self, client: int, number: int, make: Callable[[], bytes]) -> bytes:
        """A client's answer of this round, charged before it leaves.

        Raises:
            ClientFailed: the budget has no room, found before training if it can be; nothing leaves.
        """
        if self.clients is not None:
            return make()
        mechanism = self.examples[client].round
        try:
            self.guard.check(client, mechanism)
            answer = make()
            self.guard.charge(client, "round", number, mechanism)
        except BudgetSpent as spent:
            raise ClientFailed(str(spent)) from None
        return answer

    @property
    def used_up(self) -> str:
        """Why a client takes no part any more."""
        return f"its privacy budget of epsilon {self.guard.ceiling:g} is used up"

    def expect(self, client: int, number: int) -> bool:
        """Charge a round that a client elsewhere is about to be asked for; False if there is no room for it.

        The client keeps its own account; this is the server's, which takes every question as answered.
        """
        try:
            self.guard.charge(client, "round", number, self.examples[client].round)
        except BudgetSpent:
            return False
        return True

    def private_start(self, *, elsewhere: bool = False) -> PrivateStart | None:
        """How clients protect their part of private bases; None where the start looks at no private rows.

        Args:
            elsewhere: the clients keep their own accounts, and each sends its sum once, however often it is
                asked: here it is counted once.
        """
        if not self.starts:
            return None
        charge = self._count_start if elsewhere else self._charge_start
        repeats = {client: self.guard.ledger.times(client, "start", 0) for client in self.starts}
        return PrivateStart(self.starts, self.noise, charge, repeats, self.samples.stream, self.max_length)

    def _charge_start(self, client: int) -> None:
        self.guard.charge(client, "start", 0, self.starts[client].release)

    def _count_start(self, client: int) -> None:
        if not self.guard.ledger.mechanisms(client, "start"):
            self._charge_start(client)

    def cohort(self, number: int) -> list[int]:
        """The Poisson cohort of a round (unit: client); another one if the round was charged before."""
        assert self.clients is not None
        repeat = self.guard.ledger.times(None, "round", number)
        return self.clients.cohort(self.samples.stream("cohort", number, repeat))

    def server_release(self, number: int, clip_norm: float) -> ClientRelease | None:
        """What clips and noises this round's mean (unit: client), paid for."""
        if self.clients is None:
            return None
        self.guard.charge(None, "round", number, self.clients.round)
        return ClientRelease(self.clients, clip_norm, self.noise, number)

    def can_go_on(self, chosen: list[int]) -> bool:
        """Whether the budget has room for another round of at least one of these clients."""
        if self.clients is not None:
            return self.guard.affords(None, self.clients.round)
        return any(self.guard.affords(c, self.examples[c].round) for c in chosen)

    def epsilon(self) -> float:
        """The largest over clients so far."""
        return max((self.guard.epsilon(who) for who in self._who()), default=0.0)

    def _who(self) -> list[int | None]:
        return [None] if self.clients is not None else [*sorted(self.examples)]

    def check_ledger(self, last_epsilon: float | None) -> None:
        """Refuse to go on with a ledger that knows of less than was reported.

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
        private, rounds_done = self.wanted.insecure_seed is None, metrics[-1]["round"]
        per_client = {"all" if who is None else str(who): self._of(who) for who in self._who()}
        worst = max(per_client.values(), key=lambda of: of["epsilon"])
        facts = {
            "unit": self.wanted.unit,
            "private": private,
            "epsilon": worst["epsilon"] if private else None,
            "delta": self.guard.delta,
            "accountant": f"PLD (dp-accounting {version('dp-accounting')})",
            "epsilon_rdp": worst["epsilon_rdp"] if private else None,
            "epsilon_start": worst["epsilon_start"] if private else None,
            "epsilon_rounds": worst["epsilon_rounds"] if private else None,
            "noise_multiplier": max(of["noise_multiplier"] for of in per_client.values()),
            "noise_source": f"{GENERATOR}, keys from the operating system" if private else "a fixed seed",
            "clip_norm": self.wanted.clip_norm,
            "quantile": self.wanted.quantile,
            "target_epsilon": self.wanted.epsilon,
            "relation": f"one {self.wanted.unit} present or blanked",
            "sampling": "Poisson",
            "units": self._units,
            "rounds": rounds_done,
            "stopped_early": rounds_done < self.rounds,
            "per_client": per_client,
        }
        if self.clients is not None:
            facts |= self._seen_cohorts(self.clients, metrics)
        return facts | {"statement": statement(facts)}

    @property
    def _units(self) -> int:
        """How many units there are, of one client or of all, which delta is measured by."""
        if self.clients is not None:
            return self.clients.num_clients
        return min(plan.num_examples for plan in self.examples.values())

    def _seen_cohorts(self, plan: ClientPlan, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is left of the claim against a reader of the cohorts: for the client that was in most of them,
        each of its rounds is a release without sampling. A round that was charged and not listed counts."""
        listed = Counter(client for line in metrics for client in _cohort_of(line))
        charged = len(self.guard.ledger.mechanisms(None, "round"))
        most = max(listed.values(), default=0) + charged - metrics[-1]["round"]
        seen = plan.round._replace(sampling_probability=1.0, steps=most)
        return {
            "count_noise_std": plan.count_noise_std,
            "update_noise_multiplier": plan.update_noise_multiplier,
            "rounds_of_one_client": most,
            "epsilon_cohorts_known": epsilon([seen], self.guard.delta),
        }

    def _of(self, who: int | None) -> dict[str, Any]:
        ledger, delta = self.guard.ledger, self.guard.delta
        plan = self.clients if who is None else self.examples[who]
        assert plan is not None
        start = None if who is None else self.starts.get(who)
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


def _cohort_of(line: Mapping[str, Any]) -> list[int]:
    """Everybody who was asked in this round of metrics.jsonl."""
    return [*line["clients"], *(rejected["client"] for rejected in line["rejected"])]


def _without_loss(*args: Any, **more: Any) -> None:
    train(*args, **more)


def prepare_privacy(
    config: RunConfig, sizes: Mapping[int, int], folder: Path, account: Account | None = None
) -> PrivateRun | None:
    """Plans with their noise calibrated, and the ledgers as far as they were written; None without privacy.

    Args:
        sizes: how many examples each of the clients has whose privacy is accounted for here: of all in a
            simulated run, of itself on a node.
        account: a node's, of its rows over all runs.

    Raises:
        InputError: delta is too large, epsilon cannot be reached, a ledger is not what it was.
        BudgetSpent: this run has not begun, and the account has no room for all of it.
    """
    wanted = config.privacy
    if wanted is None:
        return None
    delta = check_delta(config, sizes.values())
    account = account or _account(wanted, folder)
    guard = Guard(PrivacyLedger(folder / LEDGER), delta, wanted.epsilon, account)
    noise, rounds = NoiseSource(wanted.insecure_seed), config.federation.rounds
    rest = (SampleSecret(folder, wanted.insecure_seed), config.training.max_length)
    if wanted.unit == "client":
        return PrivateRun(wanted, guard, noise, rounds, {}, {}, _client_plan(config, wanted, delta), *rest)
    starts = _start_plans(config, wanted, sizes, delta)
    plans = _example_plans(config, wanted, sizes, starts, delta)
    private = PrivateRun(wanted, guard, noise, rounds, plans, starts, None, *rest)
    for client, plan in plans.items():
        start = [starts[client].release] if client in starts else []
        guard.check_plan([*start, *[plan.round] * plan.rounds])
    return private


def _account(wanted: PrivacyConfig, folder: Path) -> Account | None:
    """Of a simulated data set, if one is asked for; it is checked before the run begins."""
    if wanted.ledger is None:
        return None
    ledger = DataLedger(place_beside(Path(wanted.ledger)))
    secret = wanted.insecure_seed is None
    account = Account(ledger, str(folder.resolve()), wanted.unit, secret_noise=secret)
    account.check()
    return account


def check_budget(config: RunConfig, sizes: Sequence[int]) -> None:
    """Refuse early what `prepare_privacy` would refuse once the run begins.

    Noise is looked for on behalf of the smallest client alone: one calibration takes seconds.

    Args:
        sizes: examples of each client.

    Raises:
        InputError: delta is too large, or epsilon cannot be reached.
    """
    wanted = config.privacy
    if wanted is None:
        return
    delta = check_delta(config, sizes)
    if wanted.unit == "client":
        _client_plan(config, wanted, delta)
        return
    smallest = min(range(len(sizes)), key=lambda client: sizes[client])
    alone = {smallest: sizes[smallest]}
    _example_plans(config, wanted, alone, _start_plans(config, wanted, alone, delta), delta)


def _client_plan(config: RunConfig, wanted: PrivacyConfig, delta: float) -> ClientPlan:
    federation = config.federation
    plan = ClientPlan(
        num_clients=federation.clients,
        expected_cohort=federation.clients_per_round or federation.clients,
        rounds=federation.rounds,
        clip_norm=wanted.clip_norm,
        quantile=wanted.quantile,
        noise_multiplier=wanted.noise_multiplier or 0.0,
    )
    return plan if wanted.noise_multiplier else plan.calibrated(_budget(wanted), delta)


def _start_plans(
    config: RunConfig, wanted: PrivacyConfig, sizes: Mapping[int, int], delta: float
) -> dict[int, StartPlan]:
    """The same number of samples for each, as far as it has them: a client knows nobody else's size."""
    init = config.method.init
    if not init.private:
        return {}
    each = max(1, round(init.samples / config.federation.clients))
    plans = {}
    for client, size in sizes.items():
        plan = StartPlan(num_examples=size, expected_samples=min(size, each))
        if wanted.epsilon is None:
            plans[client] = replace(plan, noise_multiplier=wanted.noise_multiplier or 0.0)
        else:
            plans[client] = plan.calibrated(init.budget_share * wanted.epsilon, delta)
    return plans


def _example_plans(
    config: RunConfig,
    wanted: PrivacyConfig,
    sizes: Mapping[int, int],
    starts: Mapping[int, StartPlan],
    delta: float,
) -> dict[int, ExamplePlan]:
    plans: dict[int, ExamplePlan] = {}
    for client, size in sizes.items():
        plan = example_plan(local_training(config), wanted, size, _times_chosen(config, client))
        if not wanted.noise_multiplier:
            before: list[Mechanism] = [starts[client].release] if client in starts else []
            plan = plan.calibrated(_budget(wanted), delta, before=before)
        plans[client] = plan
    return plans


def example_plan(training: LocalTraining, wanted: PrivacyConfig, size: int, rounds: int) -> ExamplePlan:
    """One client's plan before calibration: as many steps a round as without privacy."""
    batch = min(size, training.batch_size * training.accumulation)
    return ExamplePlan(
        num_examples=size,
        expected_batch_size=batch,
        steps_per_round=training.steps_per_round(size),
        rounds=rounds,
        clip_norm=wanted.clip_norm,
        noise_multiplier=wanted.noise_multiplier or 0.0,
    )


def _times_chosen(config: RunConfig, client: int) -> int:
    """Rounds in which the seeded cohorts include this client; at least 1."""
    federation = config.federation
    if federation.clients_per_round is None:
        return federation.rounds
    cohorts = (
        cohort(federation.clients, federation.clients_per_round, numpy_generator(config.seed, "cohort", n))
        for n in range(1, federation.rounds + 1)
    )
    return max(1, sum(client in chosen for chosen in cohorts))


def _budget(wanted: PrivacyConfig) -> float:
    assert wanted.epsilon is not None
    return wanted.epsilon
