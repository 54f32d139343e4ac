"""`fedsb privacy`: the noise that a budget needs, or the budget that a noise spends, from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fedsb.config.privacy_checks import refuse_large_delta
from fedsb.errors import InputError
from fedsb.federation.training import LocalTraining
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.plan import ClientPlan, ExamplePlan

OF_EXAMPLES = ["examples", "batch_size", "epochs"]
OF_CLIENTS = ["clients", "cohort"]


@dataclass(frozen=True, kw_only=True)
class PrivacyQuestion:
    """One of `epsilon` and `noise_multiplier` is asked for, the other is given.

    Attributes:
        examples, batch_size, epochs: of one client, for privacy.unit: example.
        clients, cohort: all of them, and those of a round on average, for privacy.unit: client.
    """

    examples: int | None = None
    batch_size: int | None = None
    epochs: float | None = None
    clients: int | None = None
    cohort: int | None = None
    rounds: int = 1
    delta: float
    epsilon: float | None = None
    noise_multiplier: float | None = None


def answer(question: PrivacyQuestion) -> dict[str, Any]:
    """What `--json` prints.

    Raises:
        InputError: a number is missing or out of range, or not one of epsilon and the noise is given.
    """
    unit = _unit(question)
    _check_numbers(question)
    plan = _example_plan(question) if unit == "example" else _client_plan(question)
    if question.epsilon is not None:
        plan = plan.calibrated(question.epsilon, question.delta)
    spent = [plan.whole]
    return {
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": epsilon(spent, question.delta),
        "epsilon_rdp": epsilon(spent, question.delta, accountant="rdp"),
        "delta": question.delta,
        "steps": sum(mechanism.steps for mechanism in spent),
        "sample_rate": plan.sampling_probability,
        "accountant": f"PLD (dp-accounting {version('dp-accounting')})",
        "unit": unit,
    }


def _example_plan(question: PrivacyQuestion) -> ExamplePlan:
    examples, batch_size, epochs = question.examples, question.batch_size, question.epochs
    assert examples is not None
    assert batch_size is not None
    assert epochs is not None
    _check_share("--batch-size", batch_size, examples, "examples", question.delta)
    steps = LocalTraining(epochs=epochs, batch_size=batch_size).steps_per_round(examples)
    return ExamplePlan(
        num_examples=examples,
        expected_batch_size=batch_size,
        steps_per_round=steps,
        rounds=question.rounds,
        clip_norm=1.0,
        noise_multiplier=question.noise_multiplier or 0.0,
    )


def _client_plan(question: PrivacyQuestion) -> ClientPlan:
    clients, cohort = question.clients, question.cohort
    assert clients is not None
    assert cohort is not None
    _check_share("--cohort", cohort, clients, "clients", question.delta)
    return ClientPlan(
        num_clients=clients,
        expected_cohort=cohort,
        rounds=question.rounds,
        clip_norm=1.0,
        noise_multiplier=question.noise_multiplier or 0.0,
    )


def _unit(question: PrivacyQuestion) -> str:
    """Whose privacy is asked about: that of which all numbers are given, and none of the other's."""
    names = [name for name in (*OF_EXAMPLES, *OF_CLIENTS) if getattr(question, name) is not None]
    if names == OF_EXAMPLES:
        return "example"
    if names == OF_CLIENTS:
        return "client"
    raise InputError(
        "fedsb privacy: expected --examples, --batch-size and --epochs (every example is protected) or "
        f"--clients and --cohort (every client is), found {', '.join(map(_option, names)) or 'none of them'}"
    )


def _check_numbers(question: PrivacyQuestion) -> None:
    for name, value in vars(question).items():
        if value is not None and not value > 0:
            raise InputError(f"{_option(name)}: expected a number above 0, found {value:g}")
    if (question.epsilon is None) == (question.noise_multiplier is None):
        raise InputError("--epsilon, --noise-multiplier: give one of the two; the other is the answer")


def _check_share(option: str, part: int, whole: int, units: str, delta: float) -> None:
    if part > whole:
        raise InputError(f"{option}: expected at most the {whole} {units}, found {part}")
    refuse_large_delta("--delta", delta, whole, units)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
