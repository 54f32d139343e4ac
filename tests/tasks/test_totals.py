"""Sums over examples give the scores that the examples give; sums of no examples are told from them."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from fedsb.tasks.logits import class_scores, class_sums, number_sums, of_classes, of_numbers
from fedsb.tasks.totals import of_responses

RNG = np.random.default_rng(3)
LOGITS, LABELS = RNG.normal(size=(40, 3)), RNG.integers(0, 3, 40)


def as_sent(sums):
    """As fp32, as sums travel."""
    return {name: torch.as_tensor(value).float().double().numpy() for name, value in sums.items()}


def test_counts_of_classes_give_the_scores_of_the_examples():
    losses = RNG.uniform(size=40)
    sums, totals = class_sums(LOGITS, LABELS, losses), of_classes(3)
    assert {name: value.shape for name, value in sums.items()} == dict(totals.shapes)
    found = totals.metrics(as_sent(sums), 40)
    assert found == pytest.approx({**class_scores(LOGITS, LABELS), "loss": losses.mean()}, rel=1e-6)
    assert totals.fault(as_sent(sums), 40) is None


def test_moments_give_the_correlation_of_the_numbers():
    predictions, targets = RNG.normal(size=30) + 50, RNG.normal(size=30) + 50
    targets = targets + predictions
    sums, totals = (
        as_sent(number_sums(predictions[:, None], targets, (predictions - targets) ** 2)),
        of_numbers(),
    )
    found = totals.metrics(sums, 30)
    assert found["pearson"] == pytest.approx(pearsonr(predictions, targets).statistic, rel=1e-5)
    assert found["mse"] == pytest.approx(np.mean((predictions - targets) ** 2), rel=1e-5)
    assert totals.fault(sums, 30) is None
    assert (
        of_numbers().metrics(as_sent(number_sums(targets[:1, None], targets[:1], np.zeros(1))), 1)["pearson"]
        == 0.0
    )


GOOD = as_sent(class_sums(LOGITS, LABELS, np.ones(40)))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("right", lambda v: v - 100, "whole numbers"),
        ("labelled", lambda v: v + np.array([0.5, -0.5, 0]), "whole numbers"),
        ("labelled", lambda v: v + np.array([1, 0, 0]), "not of 40 rows"),
        ("predicted", lambda v: v * 2, "not of 40 rows"),
        ("right", lambda v: np.minimum(v + 30, 40), "more right answers"),
        ("loss", lambda v: v - 1e6, "less than none"),
    ],
)
def test_counts_that_cannot_be_are_refused(name, change, says):
    fault = of_classes(3).fault(GOOD | {name: change(GOOD[name])}, 40)
    assert fault is not None
    assert says in fault


def test_other_sums_that_cannot_be_are_refused():
    numbers = {"means": np.zeros(2), "moments": np.array([1.0, 1.0, 9.0]), "loss": np.array(1.0)}
    assert "second moments" in (of_numbers().fault(numbers, 5) or "")
    responses = {name: np.array(value) for name, value in dict(loss=1, tokens=9, asked=6, exact=3).items()}
    assert of_responses().fault(responses, 6) is None
    assert of_responses().metrics(responses, 6)["exact_match"] == 0.5
    assert "not of 5 rows" in (of_responses().fault(responses, 5) or "")
