"""The learning rate warms up once per run, never is zero, and ends as its name says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsb.federation.training import learning_rate_factor

schedules = st.sampled_from(["constant", "linear", "cosine"])


def curve(total, schedule, warmup_ratio=0.0):
    return [
        learning_rate_factor(s, total, schedule=schedule, warmup_ratio=warmup_ratio) for s in range(total)
    ]


@given(total=st.integers(1, 60), schedule=schedules, ratio=st.floats(0, 0.99))
def test_factors_rise_then_never_rise_again_and_stay_in_0_to_1(total, schedule, ratio):
    factors = curve(total, schedule, ratio)
    assert all(0 < f <= 1 for f in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert top <= ratio * total


@given(total=st.integers(1, 60))
def test_constant_without_warm_up_is_one(total):
    assert curve(total, "constant") == [1.0] * total


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_linear_is_that_of_transformers_one_step_on_in_the_warm_up(ratio):
    """transformers starts its warm-up at zero, which wastes a step; after it both are the same line."""
    from transformers import get_linear_schedule_with_warmup

    total, warmup = 20, int(20 * ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup, total).lr_lambdas[0]
    ours = curve(total, "linear", ratio)
    assert ours[warmup:] == pytest.approx([theirs(s) for s in range(warmup, total)])
    assert ours[:warmup] == pytest.approx([theirs(s + 1) for s in range(warmup)])


def test_cosine_is_half_way_down_half_way_through():
    factors = curve(100, "cosine")
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.5)
    assert factors[25] == pytest.approx(1 - factors[75])
    assert factors[99] < 0.001
