"""The discrete Gaussian's draws against its chances, and the divergence of sums against the bound."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsb.privacy.accounting import ORDERS, WHOLE_ORDERS, Mechanism, deltas, epsilon, merged
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


# On Poisson samples


def sampled_pair(std, parties, shift, rate, reach=400):
    """Chances of a sum without and with one record that is in it at this rate."""
    one = chances(std, reach)
    of_sum = one
    for _ in range(parties - 1):
        of_sum = np.convolve(of_sum, one)
    without = np.pad(of_sum, (0, shift))
    return without, (1 - rate) * without + rate * np.pad(of_sum, (shift, 0))


def divergence(p, q, order):
    kept = (p > 1e-250) & (q > 1e-250)
    return math.log(np.exp(order * np.log(p[kept]) + (1 - order) * np.log(q[kept])).sum()) / (order - 1)


def accounted(noise, rate, order):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant([order])
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)))
    return float(accountant._rdp[0])


@pytest.mark.parametrize("order", [2, 3, 7])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
@pytest.mark.parametrize(("std", "parties", "shift"), [(0.8, 1, 1), (5.0, 1, 7), (3.0, 4, 5)])
def test_of_samples_a_whole_order_s_divergence_is_the_gaussian_s(std, parties, shift, rate, order):
    """Number by number, in both directions, of which the accountant's is the larger, little noise too."""
    without, with_one = sampled_pair(std, parties, shift, rate)
    bound = accounted(std * parties**0.5 / shift, rate, order)
    assert divergence(with_one, without, order) == pytest.approx(bound, rel=1e-6)
    assert divergence(without, with_one, order) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
def test_its_epsilon_is_no_less_than_what_all_outcomes_together_give_away(rate):
    delta, mechanism = 1e-4, Mechanism(4.0 / 5, rate, 1, True)
    stated = epsilon([mechanism], delta)
    without, with_one = sampled_pair(4.0, 1, 5, rate)
    for p, q in ((without, with_one), (with_one, without)):
        for at in (stated, stated / 2):
            given = np.maximum(p - math.exp(at) * q, 0).sum()
            assert given <= deltas([mechanism], np.array([at]))[0]
        assert np.maximum(p - math.exp(stated) * q, 0).sum() <= delta
    assert stated >= epsilon([mechanism._replace(discrete=False)], delta, accountant="rdp")


def test_whole_orders_alone_are_asked_where_one_of_all_is_on_samples():
    from fedsb.privacy.accounting import _orders

    sampled, whole = Mechanism(1.0, 0.1, 5, True), Mechanism(1.0, 1.0, 5, True)
    assert _orders([whole]) == _orders([sampled._replace(discrete=False)]) == ORDERS
    assert _orders([whole, sampled]) == WHOLE_ORDERS
    assert epsilon([sampled], 1e-5) == epsilon([sampled], 1e-5, accountant="rough rdp")
