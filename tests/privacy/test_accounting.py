"""Epsilon against closed forms, other accountants and published settings."""

import math

import dp_accounting as dpa
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedsb.privacy.accounting import ORDERS, Mechanism, epsilon


def exact_gaussian_epsilon(noise, delta):
    """Balle and Wang 2018, arXiv 1805.06530, theorem 8."""

    def over(e):
        return norm.cdf(0.5 / noise - e * noise) - math.exp(e) * norm.cdf(-0.5 / noise - e * noise) - delta

    return brentq(over, 0, 100)


@pytest.mark.parametrize("noise", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("steps", [1, 16])
def test_gaussian_sums_have_their_exact_epsilon(noise, steps):
    """Steps of noise z compose to one of z / sqrt(steps)."""
    expected = exact_gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    found = epsilon([Mechanism(noise, 1.0, steps)], 1e-5)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found >= expected * (1 - 1e-9), "an upper bound"


PUBLISHED = [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)]
"""Noise, epochs and epsilon of the three DP-SGD settings on MNIST (60,000 examples, batches of 256, delta
1e-5) in the table of TensorFlow Privacy's tutorials."""


@pytest.mark.parametrize(("noise", "epochs", "published"), PUBLISHED)
def test_published_settings(noise, epochs, published):
    """They were converted from Renyi DP as Mironov 2017 did (arXiv 1702.07476), which gives them to the last
    digit; today's conversion and PLD are tighter, and in this order."""
    mechanism = Mechanism(noise, 256 / 60_000, epochs * 60_000 // 256)
    assert classic_renyi_epsilon(mechanism, 1e-5) == pytest.approx(published, abs=0.01)
    renyi, pld = epsilon([mechanism], 1e-5, accountant="rdp"), epsilon([mechanism], 1e-5)
    assert 0.7 * published < pld < renyi < published


def classic_renyi_epsilon(mechanism, delta):
    accountant = RdpAccountant()
    gaussian = dpa.GaussianDpEvent(mechanism.noise_multiplier)
    accountant.compose(dpa.PoissonSampledDpEvent(mechanism.sampling_probability, gaussian), mechanism.steps)
    orders, curve = np.array(accountant._orders), np.array(accountant._rdp)
    return (curve + math.log(1 / delta) / (orders - 1)).min()


@pytest.mark.parametrize(
    ("noise", "probability", "steps"), [(1.0, 0.01, 1000), (0.7, 0.002, 3000), (2.0, 0.2, 60)]
)
def test_it_agrees_with_the_accountants_of_opacus(noise, probability, steps):
    """PRV's own error bound is 0.01 in epsilon; Renyi is the same bound computed elsewhere."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    ours = Mechanism(noise, probability, steps)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(noise, probability, steps)]
    assert epsilon([ours], 1e-5) == pytest.approx(prv.get_epsilon(1e-5, eps_error=0.01), abs=0.02)
    renyi = rdp.get_epsilon(1e-5, alphas=[float(order) for order in ORDERS])
    assert epsilon([ours], 1e-5, accountant="rdp") == pytest.approx(renyi, rel=0.02)


MIXES = [
    [Mechanism(0.6, 0.005, 48)],
    [Mechanism(3.0, 1.0, 16)],
    [Mechanism(2.0, 1.0, 1), Mechanism(0.9, 0.1, 7), Mechanism(1.0, 0.02, 30)],
]


@pytest.mark.parametrize("mechanisms", MIXES)
def test_distributions_kept_for_later_say_what_a_fresh_accountant_says(mechanisms):
    fresh = PLDAccountant()
    for m in mechanisms:
        gaussian = dpa.GaussianDpEvent(m.noise_multiplier)
        sampled = dpa.PoissonSampledDpEvent(m.sampling_probability, gaussian)
        fresh.compose(gaussian if m.sampling_probability == 1 else sampled, m.steps)
    epsilon([m._replace(steps=m.steps + 1) for m in mechanisms], 1e-5)
    assert epsilon(mechanisms, 1e-5) == pytest.approx(fresh.get_epsilon(1e-5), rel=1e-9)


def test_order_and_grouping_play_no_part():
    parts = [Mechanism(1.0, 0.1, 5), Mechanism(2.0, 1.0, 1), Mechanism(1.0, 0.1, 7)]
    whole = [Mechanism(2.0, 1.0, 1), Mechanism(1.0, 0.1, 12)]
    assert epsilon(parts, 1e-5) == epsilon(whole, 1e-5)


def test_limits():
    assert epsilon([], 1e-5) == 0
    assert epsilon([Mechanism(1.0, 0.5, 0)], 1e-5) == 0
    assert epsilon([Mechanism(0.0, 0.5, 1)], 1e-5) == math.inf
    assert epsilon([Mechanism(1e-9, 0.5, 1)], 1e-5) > 1e6


@pytest.mark.parametrize(("noise", "probability"), [(0.5, 0.1), (1.0, 0.3), (2.0, 0.9)])
def test_it_covers_a_record_that_is_present_or_blanked(noise, probability):
    """Both directions of one step against the definition: a sum with the record's coin, and one without."""
    grid = np.linspace(-40 * noise, 40 * noise + 1, 400_001)
    absent = norm.pdf(grid, 0, noise)
    present = (1 - probability) * absent + probability * norm.pdf(grid, 1, noise)

    def over(e, one, other):
        return np.trapezoid(np.maximum(one - math.exp(e) * other, 0), grid) - 1e-5

    found = epsilon([Mechanism(noise, probability, 1)], 1e-5)
    exact = max(brentq(over, 0, 30, (present, absent)), brentq(over, 0, 30, (absent, present)))
    assert exact <= found + 1e-6
    assert found == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    ("mechanism", "most"),
    [
        (Mechanism(0.3, 0.01, 3), 1.5),
        (Mechanism(0.347, 256 / 59_000, 35), 1.3),
        (Mechanism(1.0, 0.01, 1000), 1.2),
    ],
)
def test_broken_orders_bring_renyi_near_pld(mechanism, most):
    """With whole ones alone the first is 2 times as large."""
    pld, renyi = epsilon([mechanism], 1e-5), epsilon([mechanism], 1e-5, accountant="rdp")
    assert pld < renyi < most * pld
    assert renyi <= epsilon([mechanism], 1e-5, accountant="rough rdp")


def test_orders_whose_series_does_not_end_are_left_out_in_silence(caplog):
    assert 0 < epsilon([Mechanism(0.25, 0.25, 3)], 1e-5, accountant="rdp") < math.inf
    assert not caplog.records
