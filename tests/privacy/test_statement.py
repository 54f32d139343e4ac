"""The sentence to quote never claims less than was spent."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsb.privacy.statement import statement

FACTS = {
    "private": True,
    "unit": "example",
    "delta": 1e-5,
    "rounds": 3,
    "noise_multiplier": 0.6,
    "clip_norm": 5.0,
    "accountant": "PLD",
    "epsilon_rdp": 4.0,
    "noise_source": "ChaCha20, keys from the operating system",
    "quantile": None,
    "units": 5000,
    "rounds_of_one_client": 2,
    "epsilon_cohorts_known": 7.777,
    "per_client": {"all": {"epsilon_start": 0.0, "noise_multiplier": 0.6}},
}


def stated(epsilon: float) -> float:
    found = re.search(r"epsilon = (\S+) and", statement(FACTS | {"epsilon": epsilon}))
    assert found is not None
    return float(found[1])


@given(st.floats(1e-6, 1e6))
def test_epsilon_is_rounded_up(epsilon: float) -> None:
    assert epsilon * (1 - 1e-9) <= stated(epsilon) <= epsilon * 1.01


@pytest.mark.parametrize(
    ("epsilon", "said"), [(2.997, 3.0), (3.0, 3.0), (3.001, 3.01), (0.0, 0.0), (1000.0, 1000.0)]
)
def test_epsilon_in_three_digits(epsilon: float, said: float) -> None:
    assert stated(epsilon) == said


@pytest.mark.parametrize(("rounds", "said"), [(1, "over 1 round,"), (2, "over 2 rounds,")])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_rounds_are_counted_in_words(unit: str, rounds: int, said: str) -> None:
    text = statement(FACTS | {"epsilon": 3.0, "unit": unit, "rounds": rounds})
    assert said in text


def test_noise_that_differs_by_client_is_a_range() -> None:
    each = {str(c): {"epsilon_start": 0.0, "noise_multiplier": z} for c, z in enumerate((0.7, 0.61234))}
    text = statement(FACTS | {"epsilon": 3.0, "per_client": each})
    assert "noise of 0.6123 to 0.7 times that norm" in text
