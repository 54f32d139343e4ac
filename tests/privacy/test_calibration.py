"""Calibration against accounting, and against the noise known for the paper's setting."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsb.errors import InputError
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.calibration import NOISE_TOLERANCE, calibrate


@settings(max_examples=5)
@given(st.floats(0.5, 8.0), st.sampled_from([0.01, 0.2, 1.0]), st.integers(1, 50))
def test_calibrating_and_accounting_gives_the_target(target, probability, steps):
    def at(noise):
        return [Mechanism(noise, probability, steps)]

    noise = calibrate(target, 1e-5, at)
    assert epsilon(at(noise), 1e-5) <= target
    assert epsilon(at(noise * (1 - 2 * NOISE_TOLERANCE)), 1e-5) > target


def test_what_no_noise_can_reach_is_refused():
    with pytest.raises(InputError, match="cannot be reached with any noise"):
        calibrate(1.0, 1e-5, lambda noise: [Mechanism(0.5, 1.0, 1), Mechanism(noise, 0.1, 10)])


def test_the_authors_snli_setting_needs_the_noise_known_for_it():
    """papers: 0.591 at epsilon 1 and delta 1/n by PRV."""
    steps = 6 * math.ceil(183_122 / 32)
    noise = calibrate(1.0, 5.46e-6, lambda z: [Mechanism(z, 32 / 183_122, steps)])
    assert noise == pytest.approx(0.591, rel=0.02)
