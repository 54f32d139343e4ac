"""The sentence to quote never claims less than was spent, and says what it does not cover."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import classification_config, metrics_of, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.statement import statement

FACTS = {
    "private": True,
    "unit": "example",
    "delta": 1e-5,
    "rounds": 3,
    "noise_multiplier": 0.6,
    "noise_source": "ChaCha20, keys from the operating system",
    "clip_norm": 5.0,
    "quantile": None,
    "accountant": "PLD",
    "epsilon_rdp": 4.0,
    "units": 5000,
    "rounds_of_one_client": 2,
    "epsilon_cohorts_known": 7.777,
    "per_client": {"all": {"epsilon_start": 0.0, "noise_multiplier": 0.6}},
}
OF_CLIENTS = FACTS | {"unit": "client", "epsilon": 3.0}


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


@pytest.mark.parametrize("facts", [FACTS | {"epsilon": 3.0}, OF_CLIENTS], ids=["example", "client"])
def test_it_says_the_relation_the_noise_and_what_is_left_out(facts) -> None:
    text = statement(facts)
    for said in (
        "present or blanked",
        "from ChaCha20, keys from the operating system",
        "who answered in time or failed",
        "those that chose the settings (learning rate, clip norm, method)",
        "Taken as public: how many",
    ):
        assert said in text
    assert "seed" not in text
    assert "adding or removing" not in text


def test_a_quantile_that_is_followed_has_its_noise_told_too() -> None:
    followed = {"quantile": 0.5, "update_noise_multiplier": 0.65432, "count_noise_std": 5.0}
    text = statement(OF_CLIENTS | followed)
    assert "0.6543 times that norm to the sum, and of 5 to the number of updates within it" in text
    assert "together one release of noise multiplier 0.6" in text
    assert "(at first 5)" in text
    assert "at first" not in statement(OF_CLIENTS)


def test_what_a_reader_of_the_cohorts_knows_more_is_told() -> None:
    assert "asked most often, 2 times, epsilon is then 7.78" in statement(OF_CLIENTS)


@pytest.mark.parametrize(("delta", "said"), [(1e-5, False), (2e-5, False), (2.1e-5, True), (1e-4, True)])
def test_a_delta_above_a_tenth_of_one_over_n_is_told(delta: float, said: bool) -> None:
    text = statement(FACTS | {"epsilon": 3.0, "delta": delta})
    assert ("above a tenth of one over the 5000 examples, 2e-05" in text) == said


def test_the_cohorts_that_are_told_are_those_of_the_run(tmp_path) -> None:
    """Recounted from metrics.jsonl, and accounted for without sampling."""
    tiny_bert(tmp_path / "bert")
    write_data(tmp_path / "data", train=60, test=6)
    config = classification_config(
        tmp_path / "bert",
        tmp_path / "data",
        federation={"clients": 6, "clients_per_round": 3, "rounds": 4, "weighting": "uniform"},
        method__init={"kind": "weights"},
        privacy={"unit": "client", "noise_multiplier": 1.5, "delta": 1e-2, "clip_norm": 0.5, "quantile": 0.5},
    )
    facts = run(RunConfig.from_dict(config), tmp_path / "run").summary["privacy"]
    lines = metrics_of(tmp_path / "run")
    most = max(Counter(client for line in lines for client in line["clients"]).values(), default=0)
    assert facts["rounds_of_one_client"] == most
    assert facts["epsilon_cohorts_known"] == epsilon([Mechanism(1.5, 1.0, most)], 1e-2)
    assert facts["units"] == 6
    assert facts["relation"] == "one client present or blanked"
    together = (facts["update_noise_multiplier"] ** -2 + (2 * facts["count_noise_std"]) ** -2) ** -0.5
    assert together == pytest.approx(facts["noise_multiplier"])
