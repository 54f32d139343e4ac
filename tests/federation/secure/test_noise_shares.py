"""Clients that share the noise: the sum's distribution, its sensitivity, and too few of them."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedsb.errors import InputError, RunFailed
from fedsb.federation.secure.here import Here
from fedsb.federation.secure.messages import TAIL
from fedsb.federation.secure.noise_shares import NoiseShares
from fedsb.federation.secure.server import SecureSum, new_terms
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules
from fedsb.federation.server import Failed
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ClientPlan

COUNT, SIZE, FEWEST = 5, 4000, 4
PLAN = ClientPlan(
    num_clients=COUNT, expected_cohort=COUNT, rounds=3, clip_norm=0.5, noise_multiplier=1.2, fewest=FEWEST
)
RULES = Rules("a run", 0.6, 8.0, FEWEST)


def total_of(updates, gone=(), plan=PLAN, rules=RULES):
    shares, asked = NoiseShares(plan, COUNT, SIZE), []

    def work(clients, question_to):
        for client in clients:
            question_to(client)
            yield client, Summand(updates[client])

    def integers(client, summand):
        return shares.integers(summand, Keystream.derived(b"a test", client))

    here = Here(rules, work, integers, shares.coding)

    def ask(kind, clients, message_to):
        asked.append(kind)
        for client in gone if kind == "train" else ():
            yield Failed(client, "gone")
        yield from here(kind, [c for c in clients if kind != "train" or c not in gone], message_to)

    made = SecureSum(ask, new_terms("train", 1, range(COUNT)), rules, b"q", shares.coding, SIZE)
    try:
        return made.total().values.numpy(), shares
    except RunFailed:
        assert "unmask" not in asked
        raise


def test_the_sum_has_the_noise_of_the_plan_and_a_little_more_of_those_above_the_fewest():
    values, shares = total_of([torch.zeros(SIZE)] * COUNT)
    std = PLAN.noise_multiplier * PLAN.clip_norm * (COUNT / FEWEST) ** 0.5
    assert shares.sensitivity * shares.coding.step == pytest.approx(PLAN.clip_norm, rel=1e-4)
    assert kstest(values / std, "norm").pvalue > 1e-4
    assert values.std() == pytest.approx(std, rel=0.04)


def test_of_the_fewest_clients_it_is_the_noise_of_the_plan():
    values, _ = total_of([torch.zeros(SIZE)] * COUNT, gone=(2,))
    assert values.std() == pytest.approx(PLAN.noise_multiplier * PLAN.clip_norm, rel=0.05)
    assert kstest(values / (PLAN.noise_multiplier * PLAN.clip_norm), "norm").pvalue > 1e-4


def test_a_dropout_beyond_the_plan_stops_the_round_before_anything_is_released():
    with pytest.raises(RunFailed, match="3 of 5 clients sent their numbers, secure aggregation needs 4"):
        total_of([torch.zeros(SIZE)] * COUNT, gone=(1, 2))


def test_updates_are_clipped_and_added():
    updates = [torch.full((SIZE,), float(c + 1)) for c in range(COUNT)]
    values, _ = total_of(updates)
    each = PLAN.clip_norm / SIZE**0.5
    assert values.mean() == pytest.approx(
        COUNT * each, abs=5 * PLAN.noise_multiplier * PLAN.clip_norm / SIZE**0.5
    )


@pytest.mark.parametrize("seed", range(4))
def test_one_client_moves_the_whole_numbers_by_at_most_the_sensitivity(seed, monkeypatch):
    """Whatever its update is; without noise, and with rounding at its worst."""
    from fedsb.federation.secure import noise_shares

    monkeypatch.setattr(
        noise_shares, "discrete_gaussian", lambda count, std, stream: np.zeros(count, np.int64)
    )
    shares = NoiseShares(dataclasses.replace(PLAN, clip_norm=10.0**-seed), COUNT, SIZE)
    update = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (3 * seed - 6)
    whole = shares.integers(Summand(update), Keystream.fresh())[:-TAIL].astype(float)
    assert np.linalg.norm(whole) <= shares.sensitivity


def test_at_equal_epsilon_the_noise_of_the_mean_falls_with_the_root_of_the_cohort():
    """Beside clients that add all the noise each: 42 % less at 3 clients, 68 % at 10."""
    for clients, less in ((3, 0.42), (10, 0.68)):
        plan = dataclasses.replace(PLAN, expected_cohort=clients, fewest=clients)
        shares = NoiseShares(plan, clients, SIZE)
        alone = plan.noise_multiplier * plan.clip_norm / clients**0.5
        together = shares.std * shares.coding.step * clients**0.5 / clients
        assert 1 - together / alone == pytest.approx(less, abs=0.01)


def test_noise_too_small_for_the_steps_is_refused():
    with pytest.raises(InputError, match="too little"):
        NoiseShares(dataclasses.replace(PLAN, noise_multiplier=1e-9), COUNT, SIZE)
