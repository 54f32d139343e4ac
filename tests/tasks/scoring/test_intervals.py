"""Intervals against a library, against exact counting, and against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsb.tasks.intervals import Score, bootstrap, mean_of_shares, scores, wilson
from fedsb.tasks.task import Measurement


@given(st.integers(1, 3000), st.floats(0, 1))
def test_a_share_lies_1_96_deviations_from_the_ends_of_its_wilson_interval(count, share):
    found = round(share * count) / count
    for end in wilson(round(share * count), count):
        assert abs(found - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)


@pytest.mark.parametrize(("successes", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_share(successes, count):
    with pytest.raises(ValueError, match="expected 0 to"):
        wilson(successes, count)


def mean_of(values: np.ndarray) -> Measurement:
    return Measurement(len(values), lambda at: {"mean": float(values[at].mean())})


def test_bootstrap_of_a_mean_is_near_the_normal_interval(rng):
    values = np.random.default_rng(3).normal(5, 2, size=400)
    low, high = bootstrap(mean_of(values), rng)["mean"]
    reach = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.25 * reach)


def test_intervals_cover_the_truth_as_often_as_they_say(rng):
    """200 samples of 60 with share 0.3: Wilson's holds 0.3 in about 95 % of them, the bootstrap's too."""
    hits = {"wilson": 0, "bootstrap": 0}
    for draw in np.random.default_rng(1).random((200, 60)) < 0.3:
        low, high = wilson(int(draw.sum()), 60)
        hits["wilson"] += low <= 0.3 <= high
        low, high = bootstrap(mean_of(draw.astype(float)), rng, resamples=200)["mean"]
        hits["bootstrap"] += low <= 0.3 <= high
    assert 0.90 <= hits["wilson"] / 200 <= 0.99
    assert 0.88 <= hits["bootstrap"] / 200 <= 0.99


def test_scores_carry_count_value_and_kind(rng):
    right = np.array([1, 0, 1, 1])
    one = Measurement(
        4,
        lambda at: {"accuracy": float(right[at].mean()), "sum": float(right[at].sum())},
        frozenset({"accuracy"}),
    )
    two = mean_of(np.array([1.0, 2.0]))
    assert one.all() | two.all() == {"accuracy": 0.75, "sum": 3.0, "mean": 1.5}
    found = scores([one, two], rng, resamples=50)
    assert (found["accuracy"].value, found["accuracy"].count, found["accuracy"].interval) == (
        0.75,
        4,
        "wilson",
    )
    assert (found["accuracy"].low, found["accuracy"].high) == wilson(3, 4)
    assert (found["mean"].count, found["mean"].interval) == (2, "bootstrap")
    assert found["sum"].low <= 3 <= found["sum"].high


def test_the_interval_of_a_mean_of_shares():
    def share(hits, count):
        return Score(hits / count, *wilson(hits, count), count, "wilson")

    one = mean_of_shares([share(3, 10)])
    assert (one.value, one.low, one.high) == pytest.approx((0.3, *wilson(3, 10)))
    none = mean_of_shares([share(0, 20), share(0, 30)])
    assert (none.value, none.low, none.count) == (0, 0, 50)
    assert 0.02 < none.high < 0.16
    draw, held, counts, truth = np.random.default_rng(2), 0, [40, 90, 60], [0.2, 0.5, 0.8]
    for hits in draw.binomial(counts, truth, size=(400, 3)):
        found = mean_of_shares([share(int(h), n) for h, n in zip(hits, counts, strict=True)])
        held += found.low <= np.mean(truth) <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_draws_without_a_finite_metric_are_left_out(rng):
    values = np.array([1.0, math.nan, 2.0])
    low, high = bootstrap(mean_of(values), rng)["mean"]
    assert 1 <= low <= high <= 2
    assert all(math.isnan(end) for end in bootstrap(mean_of(np.array([math.nan])), rng)["mean"])


def test_the_same_generator_gives_the_same_interval():
    values = np.arange(20.0)
    first, second = (bootstrap(mean_of(values), np.random.default_rng(7)) for _ in range(2))
    assert first == second
