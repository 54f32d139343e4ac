"""The discrete Gaussian's draws against its chances, and the divergence of sums against the bound."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsb.privacy.accounting import Mechanism, epsilon, merged
from fedsb.privacy.discrete_noise import LEAST_STD, discrete_gaussian, excess
from fedsb.privacy.keystream import Keystream


def chances(std, reach):
    """Of -reach to reach, by the definition."""
    weights = np.array([math.exp(-(k**2) / (2 * std**2)) for k in range(-reach, reach + 1)])
    return weights / weights.sum()


@pytest.mark.parametrize("std", [0.7, 4.0, 16.3])
def test_draws_have_the_chances_of_the_definition(std):
    count, reach = 60_000, math.ceil(4 * std)
    draws = discrete_gaussian(count, std, Keystream.derived(b"a test", str(std)))
    expected = chances(std, 12 * reach)[11 * reach : 13 * reach + 1]
    seen = np.bincount(draws[np.abs(draws) <= reach] + reach, minlength=2 * reach + 1)
    usual = count * expected > 5
    assert chisquare(seen[usual], expected[usual] / expected[usual].sum() * seen[usual].sum()).pvalue > 1e-4


def test_large_ones_have_the_standard_deviation_asked_for():
    draws = discrete_gaussian(200_000, 1e6, Keystream.derived(b"a test"))
    assert draws.dtype == np.int64
    assert draws.std() == pytest.approx(1e6, rel=0.01)
    assert abs(draws.mean()) < 1e4


def test_no_two_streams_give_the_same_and_one_stream_never_repeats():
    stream = Keystream.fresh()
    first, second = discrete_gaussian(50, 1e6, stream), discrete_gaussian(50, 1e6, stream)
    assert (first != second).any()


@pytest.mark.parametrize(("parties", "shift", "order"), [(1, 1, 2), (3, 2, 2), (3, 2, 16), (5, 1, 8)])
def test_a_sums_divergence_of_a_shift_is_within_the_gaussian_bound(parties, shift, order):
    """Renyi's divergence of the sum of discrete Gaussians, number by number, against alpha shift^2 / (2 n
    std^2), which theorem 1 of Kairouz et al. 2021 gives up to `excess`."""
    std, reach = 2.0, 60
    one = chances(std, reach)
    of_sum = one
    for _ in range(parties - 1):
        of_sum = np.convolve(of_sum, one)
    p, q = of_sum[shift:], of_sum[:-shift]
    kept = (p > 1e-250) & (q > 1e-250)
    logs = order * np.log(p[kept]) + (1 - order) * np.log(q[kept])
    divergence = math.log(np.exp(logs).sum()) / (order - 1)
    bound = order * shift**2 / (2 * parties * std**2)
    assert divergence <= bound * (1 + 1e-9) + 2 * order * excess(parties, std)
    assert divergence > 0.9 * bound


def test_the_excess_is_nothing_at_the_least_noise():
    assert excess(1000, LEAST_STD) < 1e-300


def test_shared_noise_is_accounted_by_renyi_dp_without_sampling():
    shared = Mechanism(2.0, 1.0, 10, discrete=True)
    plain = Mechanism(2.0, 1.0, 10)
    assert epsilon([shared], 1e-5) == epsilon([plain], 1e-5, accountant="rdp") > epsilon([plain], 1e-5)
    assert len(merged([shared, plain, shared])) == 2


def test_a_ledger_line_names_discrete_noise_alone():
    assert "discrete" not in Mechanism(2.0, 1.0, 10).record
    assert Mechanism(**Mechanism(2.0, 1.0, 10, discrete=True).record).discrete
