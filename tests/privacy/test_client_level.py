"""A round's release under client-level DP against the definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsb.methods import ALL, Shape
from fedsb.methods.method import AggregationInputs, Upload
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.clipping import ClippedSum, clip
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ClientPlan

PLAN = ClientPlan(num_clients=10, expected_cohort=4, rounds=3, clip_norm=0.7)
SHAPES = {"layer.R": (1, 3, 3), "out.weight": (2, 3)}
SIZE = 15


def by_name(name):
    return next(m for m in ALL if m.name == name)


def released(updates, plan=PLAN, *, clip_norm=0.7, noise=None, method="fed-sb"):
    """The next broadcast, flat, after these clients' updates (answer minus broadcast), and the release."""
    current = {n: torch.full(shape, 0.3) for n, shape in SHAPES.items()}
    frame = AggregationInputs(current, SHAPES, {"layer": Shape(8, 8)}, 1.0)
    release = ClientRelease(plan, clip_norm, noise or NoiseSource(), 1)
    aggregation = release.wrap(by_name(method).aggregation)
    total = aggregation.start(frame)
    for update in updates:
        vector = (update + 0.3).float()
        views = {"layer.R": vector[:9].view(1, 3, 3), "out.weight": vector[9:].view(2, 3)}
        total = aggregation.add(total, Upload(views, vector, 5.0))
    result = aggregation.finish(total)
    return torch.cat([result.tensors[n].flatten() for n in SHAPES]).double() - 0.3, release


def updates(count, seed=0, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    return [size * torch.randn(SIZE, generator=draw).double() for _ in range(count)]


@given(st.integers(0, 5), st.floats(0.01, 5.0))
def test_adding_or_removing_a_client_moves_the_sum_by_at_most_the_sensitivity(left_out, clip_norm):
    whole, part = ClippedSum(SIZE, clip_norm), ClippedSum(SIZE, clip_norm)
    for n, update in enumerate(updates(6)):
        whole.add(update)
        if n != left_out:
            part.add(update)
    assert (whole.total - part.total).norm() <= whole.sensitivity * (1 + 1e-12)


@given(st.floats(1e-6, 10), st.integers(0, 100))
def test_clipping_keeps_the_direction_and_the_norm_within(clip_norm, seed):
    vector = updates(1, seed)[0]
    clipped, within = clip(vector, clip_norm)
    assert clipped.norm() <= clip_norm * (1 + 1e-12)
    assert within == (vector.norm() <= clip_norm)
    assert torch.allclose(clipped / clipped.norm().clamp_min(1e-300), vector / vector.norm())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_counts_as_nothing(bad):
    clipped, within = clip(torch.tensor([1.0, bad]), 1.0)
    assert not clipped.any()
    assert not within


def test_without_noise_it_is_the_clipped_mean_over_the_expected_cohort():
    cohort = updates(3)
    expected = sum(u * min(1.0, 0.7 / u.norm().item()) for u in cohort) / 4
    torch.testing.assert_close(released(cohort)[0], expected, rtol=1e-5, atol=1e-6)


def test_without_noise_or_clipping_and_a_full_cohort_it_is_the_plain_mean():
    plan = replace(PLAN, num_clients=4, clip_norm=math.inf)
    cohort = updates(4)
    torch.testing.assert_close(
        released(cohort, plan, clip_norm=math.inf)[0], sum(cohort) / 4, rtol=1e-5, atol=1e-6
    )


def test_an_empty_cohort_releases_noise_of_the_right_size():
    plan = replace(PLAN, noise_multiplier=2.0)
    draws = torch.stack([released([], plan)[0] for _ in range(600)])
    expected = 2.0 * 0.7 / 4
    assert draws.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * draws.numel()))


def test_rounds_have_noise_of_their_own():
    plan = replace(PLAN, noise_multiplier=2.0)
    draws = np.stack([released([], plan)[0].numpy() for _ in range(40)])
    assert np.unique(draws, axis=0).shape == draws.shape


@pytest.mark.parametrize("size", [0.01, 10.0])
def test_the_clip_norm_follows_the_quantile(size):
    """Small updates are all within and bring it down; large ones bring it up."""
    plan = replace(PLAN, quantile=0.5, num_clients=4)
    _, release = released(updates(4, size=size), plan)
    assert (release.next_clip_norm < 0.7) == (size < 1)
    assert release.next_clip_norm == pytest.approx(
        0.7 * math.exp(-0.2 * (0.5 if size < 1 else -0.5)), rel=0.2
    )


@pytest.mark.parametrize("cohort", [4, 400])
def test_the_quantile_pays_out_of_the_same_noise(cohort):
    """Two Gaussian releases of multipliers u and 2 c (a client moves the centred count by 1/2) are one of
    z."""
    plan = ClientPlan(
        num_clients=1000, expected_cohort=cohort, rounds=1, clip_norm=1.0, noise_multiplier=1.5, quantile=0.5
    )
    together = (plan.update_noise_multiplier**-2 + (2 * plan.count_noise_std) ** -2) ** -0.5
    assert together == pytest.approx(1.5)
    assert plan.update_noise_multiplier > 1.5


def test_cohorts_are_poisson_and_repeat_by_their_key():
    coins = Keystream(bytes(32))
    sizes = [len(PLAN.cohort(coins)) for _ in range(2000)]
    assert np.mean(sizes) == pytest.approx(4, rel=0.05)
    assert np.var(sizes) == pytest.approx(10 * 0.4 * 0.6, rel=0.15)
    assert PLAN.cohort(Keystream(bytes(32))) == PLAN.cohort(Keystream(bytes(32)))
