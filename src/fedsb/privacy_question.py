"""`fedsb privacy`: the noise that a budget needs, or the budget that a noise spends, from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fedsb.client import LocalTraining
from fedsb.errors import InputError
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.plan import ExamplePlan


@dataclass(frozen=True)
class PrivacyQuestion:
    """DP-SGD of one client; one of `epsilon` and `noise_multiplier` is asked for, the other given."""

    examples: int
    batch_size: int
    epochs: float
    rounds: int
    delta: float
    epsilon: float | None
    noise_multiplier: float | None


def answer(asked: PrivacyQuestion) -> dict[str, Any]:
    """What `--json` prints.

    Raises:
        InputError: a number is out of range, or both or neither of epsilon and the noise are given.
    """
    _check(asked)
    steps = LocalTraining(epochs=asked.epochs, batch_size=asked.batch_size).steps_per_round(asked.examples)
    plan = ExamplePlan(
        num_examples=asked.examples,
        expected_batch_size=asked.batch_size,
        steps_per_round=steps,
        rounds=asked.rounds,
        clip_norm=1.0,
        noise_multiplier=asked.noise_multiplier or 0.0,
    )
    if asked.epsilon is not None:
        plan = plan.calibrated(asked.epsilon, asked.delta)
    spent = [plan.round] * plan.rounds
    return {
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": epsilon(spent, asked.delta),
        "epsilon_rdp": epsilon(spent, asked.delta, accountant="rdp"),
        "delta": asked.delta,
        "steps": steps * asked.rounds,
        "sample_rate": plan.sampling_probability,
        "accountant": f"PLD (dp-accounting {version('dp-accounting')})",
        "unit": "example",
    }


def _check(asked: PrivacyQuestion) -> None:
    for name in ("examples", "batch_size", "epochs", "rounds", "delta", "epsilon", "noise_multiplier"):
        value = getattr(asked, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: expected a number above 0, found {value:g}")
    if (asked.epsilon is None) == (asked.noise_multiplier is None):
        raise InputError("--epsilon, --noise-multiplier: give one of the two; the other is the answer")
    if asked.batch_size > asked.examples:
        raise InputError(
            f"--batch-size: expected at most the {asked.examples} examples, found {asked.batch_size}"
        )
    if asked.delta >= 1 / asked.examples:
        raise InputError(
            f"--delta: expected less than 1 / {asked.examples} (the examples), found {asked.delta:g}: at "
            f"that delta, giving away one example in full counts as private. Try {0.1 / asked.examples:.1g}"
        )
