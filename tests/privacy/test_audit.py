"""An attack on the whole training: what it proves about epsilon stays below what is stated, and it can fail.

Membership of a canary, as Nasr et al. 2021 (arXiv 2101.04535) and Jagielski et al. 2020 (arXiv 2006.07709)
test it: the same private training many times with the canary among the examples and many times without. The
attacker sees the result and measures how far it moved along the canary's gradient. A threshold chosen on one
half of the trials gives true and false positive rates on the other; Clopper-Pearson bounds at 95 % turn them
into a lower bound of epsilon.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import beta
from test_client import Setup, make_examples

from fedsb.client import LocalTraining
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.dp_sgd import train_privately
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan

TRIALS = 400
DELTA = 1e-3
TRAINING = LocalTraining(optimizer="sgd", learning_rate=1e-3, batch_size=64)
PLAN = ExamplePlan(
    num_examples=8, expected_batch_size=8, steps_per_round=2, rounds=1, clip_norm=0.2, noise_multiplier=1.7
)
CANARY = {"id": 99, "input_ids": [7, 7, 7], "label": 2}
OTHERS = make_examples(7)


def moved(setup, start, examples, plan):
    """How far the trained numbers moved, as one vector."""
    for name, parameter in setup.parameters.items():
        parameter.data.copy_(start[name])
    train_privately(
        setup.trainable,
        setup.parameters,
        examples,
        TRAINING,
        replace(plan, num_examples=len(examples)),
        noise=NoiseSource(),
        masks={},
        round_number=1,
        client=0,
        seed=0,
    )
    return torch.cat([(p.detach() - start[n]).flatten() for n, p in setup.parameters.items()]).double()


def scores(plan, trials=TRIALS):
    """The attacker's statistic over trials without and with the canary."""
    setup = Setup()
    start = {name: p.detach().clone() for name, p in setup.parameters.items()}
    silent = replace(plan, noise_multiplier=0.0)
    direction = moved(setup, start, [*OTHERS, CANARY], silent) - moved(setup, start, OTHERS, silent)
    direction /= direction.norm()
    return [
        np.array([float(moved(setup, start, examples, plan) @ direction) for _ in range(trials)])
        for examples in (OTHERS, [*OTHERS, CANARY])
    ]


def lower_bound(without, with_canary):
    """Of epsilon, from scores of fresh trials; threshold from the first half, rates from the second."""
    half = len(without) // 2
    candidates = np.quantile(
        np.concatenate([without[:half], with_canary[:half]]), np.linspace(0.02, 0.98, 49)
    )
    threshold = max(candidates, key=lambda t: proven(without[:half], with_canary[:half], t))
    return proven(without[half:], with_canary[half:], threshold)


def proven(without, with_canary, threshold, confidence=0.95):
    """What these rates at this threshold prove."""
    trials, risk = len(without), (1 - confidence) / 2
    false, true = (without > threshold).sum(), (with_canary > threshold).sum()
    false_at_most = 1.0 if false == trials else beta.ppf(1 - risk, false + 1, trials - false)
    true_at_least = 0.0 if true == 0 else beta.ppf(risk, true, trials - true + 1)
    return max(0.0, math.log(max(true_at_least - DELTA, 1e-12) / false_at_most))


def stated(plan):
    return epsilon([plan.round], DELTA)


@pytest.fixture(scope="module")
def bounds():
    """Of the plan as it is, without noise, and with an eighth of the noise it states."""
    eighth = replace(PLAN, noise_multiplier=PLAN.noise_multiplier / 8)
    none = replace(PLAN, noise_multiplier=0.0)
    return {
        name: lower_bound(*scores(plan))
        for name, plan in {"as stated": PLAN, "none": none, "an eighth": eighth}.items()
    }


def test_the_attack_proves_less_than_is_stated(bounds):
    assert 0.5 < stated(PLAN) < 3.5
    assert bounds["as stated"] <= stated(PLAN)


def test_without_noise_the_attack_wins(bounds):
    assert bounds["none"] > 3


def test_noise_of_an_eighth_would_be_caught(bounds):
    """A training that states one noise and adds less: the audit can fail."""
    assert bounds["an eighth"] > stated(PLAN)
