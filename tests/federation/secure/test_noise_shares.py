"""Clients that share the noise: the sum's distribution, its sensitivity, and too few of them."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedsb.errors import InputError, RunFailed, UpdateRejected
from fedsb.federation.secure.here import Here
from fedsb.federation.secure.messages import TAIL
from fedsb.federation.secure.noise_shares import NoiseShares
from fedsb.federation.secure.server import SecureSum, new_terms
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules
from fedsb.federation.server import Failed
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ClientPlan, ExamplePlan, Sharing

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


# Sums over rows

ROWS = 300


def example_plan(clip_norm=0.5, rate=0.2, noise_multiplier=1.2):
    return ExamplePlan(
        num_examples=ROWS, expected_batch_size=60, steps_per_round=1, rounds=3, clip_norm=clip_norm,
        noise_multiplier=noise_multiplier, sharing=Sharing(rate=rate, fewest=FEWEST, cohort=COUNT),
    )  # fmt: skip


def whole_numbers(shares, total):
    return shares.integers(Summand(total, 17), Keystream.fresh())[:-TAIL].astype(float)


@pytest.fixture
def silent(monkeypatch):
    from fedsb.federation.secure import noise_shares

    monkeypatch.setattr(
        noise_shares, "discrete_gaussian", lambda count, std, stream: np.zeros(count, np.int64)
    )


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_one_row_moves_a_client_s_whole_numbers_by_at_most_the_sensitivity(scale, silent):
    """In any direction, whatever the others' sum; rounding at its worst, and where numbers are cut, too."""
    shares, draw = NoiseShares(example_plan(), COUNT, SIZE, ROWS), torch.Generator().manual_seed(5)
    step = shares.coding.step
    for _ in range(3):
        row = torch.randn(SIZE, generator=draw, dtype=torch.float64)
        row *= 0.5 / row.norm()
        others = torch.randn(SIZE, generator=draw, dtype=torch.float64) * scale
        moved = whole_numbers(shares, others + row) - whole_numbers(shares, others)
        assert np.linalg.norm(moved) <= shares.sensitivity
    steps = np.floor(0.5 / step / SIZE**0.5)  # and a little more: both sums are rounded the other way
    below = torch.full((SIZE,), 0.5 - 1e-6, dtype=torch.float64) * step
    worst = whole_numbers(shares, below + (steps + 1e-5) * step) - whole_numbers(shares, below)
    assert 0.5 / step < np.linalg.norm(worst) <= shares.sensitivity


def test_the_sensitivity_is_reached_but_for_rounding(silent):
    shares = NoiseShares(example_plan(), COUNT, SIZE, ROWS)
    row = torch.zeros(SIZE, dtype=torch.float64)
    row[3] = 0.5
    moved = np.linalg.norm(whole_numbers(shares, row) - whole_numbers(shares, 0 * row))
    assert 0.999 * shares.sensitivity < moved <= shares.sensitivity
    assert shares.std == pytest.approx(1.2 * 0.5 / shares.coding.step / FEWEST**0.5, rel=1e-3)


def test_a_sum_is_added_as_it_is_beside_its_weight_and_a_heavier_one_is_refused(silent):
    shares = NoiseShares(example_plan(), COUNT, SIZE, ROWS)
    total = torch.linspace(-30, 30, SIZE, dtype=torch.float64)
    whole = shares.integers(Summand(total, 70_000 % ROWS), Keystream.fresh())
    assert np.abs(whole[:-TAIL] * shares.coding.step - total.numpy()).max() <= shares.coding.step / 2
    assert list(whole[-TAIL:]) == [0, 70_000 % ROWS, 0]
    with pytest.raises(UpdateRejected, match="a weight of 301"):
        shares.integers(Summand(total, ROWS + 1), Keystream.fresh())


def test_all_clients_sums_at_their_largest_and_their_noise_fit_into_the_numbers():
    shares = NoiseShares(example_plan(), COUNT, SIZE, ROWS)
    most, noise = 120 * 0.5, 11.9 * shares.std * COUNT**0.5  # of 60 rows on average
    assert COUNT * most / shares.coding.step + noise < 2**31


def test_too_little_noise_for_the_steps_is_refused():
    with pytest.raises(InputError, match="too little for the steps"):
        NoiseShares(example_plan(noise_multiplier=1e-7), COUNT, SIZE, ROWS)
