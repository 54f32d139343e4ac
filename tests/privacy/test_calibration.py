"""Calibration against accounting, and against the noise known for the paper's setting."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsb.errors import InputError
from fedsb.privacy.accounting import COARSE_GRID, GRID_OF_LOSSES, Mechanism, epsilon
from fedsb.privacy.calibration import NOISE_TOLERANCE, calibrate


@settings(max_examples=3)
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


def test_it_also_finds_noise_where_the_coarse_grid_says_nothing():
    """A step's losses of about q / z = 4e-4 lie within one cell of it."""

    def at(noise):
        return [Mechanism(noise, 0.01, 20_000)]

    noise = calibrate(0.2, 1e-6, at)
    assert epsilon(at(noise), 1e-6) <= 0.2 < epsilon(at(noise * (1 - 2 * NOISE_TOLERANCE)), 1e-6)


def test_the_fine_grid_is_asked_at_most_three_times_for_a_usual_setting(monkeypatch):
    asked = []

    def listened(*args, **how):
        asked.append("grid" not in how and "accountant" not in how)
        return epsilon(*args, **how)

    monkeypatch.setattr("fedsb.privacy.calibration.epsilon", listened)
    calibrate(3.0, 1e-5, lambda z: [Mechanism(z, 0.005, 48)])
    assert sum(asked) <= 3, "once with the most noise, which costs nothing, then twice"


def test_every_grid_gives_an_upper_bound():
    mechanisms = [Mechanism(0.6, 0.002, 2000)]
    coarse, fine = (epsilon(mechanisms, 1e-5, grid=grid) for grid in (COARSE_GRID, GRID_OF_LOSSES))
    assert fine < coarse < 1.02 * fine
