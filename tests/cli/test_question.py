"""`fedsb privacy`: calibrates or accounts, as the contract says, and refuses what makes no sense."""

import json

import pytest
from run_helpers import main_status

from fedsb.privacy.accounting import Mechanism, epsilon

SMALL = ["--examples", 2000, "--batch-size", 50, "--epochs", 1, "--delta", 1e-4]


def ask(monkeypatch, capsys, *arguments):
    assert main_status(monkeypatch, "privacy", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_authors_snli_setting(monkeypatch, capsys):
    """183,122 examples a client, batch 32, six epochs: 0.591 by PRV."""
    result = ask(
        monkeypatch,
        capsys,
        *("--examples", 183122, "--batch-size", 32, "--epochs", 6, "--delta", 5.46e-6, "--epsilon", 1),
    )
    assert result["noise_multiplier"] == pytest.approx(0.591, rel=0.02)
    assert result["steps"] == 6 * 5723
    assert result["sample_rate"] == 32 / 183122
    assert 0.99 < result["epsilon"] <= 1
    assert {"delta", "accountant", "unit"} <= set(result)


def test_calibrating_and_accounting_agree(monkeypatch, capsys):
    calibrated = ask(monkeypatch, capsys, *SMALL, "--rounds", 3, "--epsilon", 2)
    noise = calibrated["noise_multiplier"]
    accounted = ask(monkeypatch, capsys, *SMALL, "--rounds", 3, "--noise-multiplier", noise)
    assert accounted == calibrated
    assert accounted["steps"] == 120
    assert accounted["epsilon"] == epsilon([Mechanism(noise, 0.025, 120)], 1e-4)


def test_clients_are_the_unit_where_clients_are_given(monkeypatch, capsys):
    """As `ClientPlan` of a run: one release a round, on a Poisson cohort."""
    result = ask(
        monkeypatch,
        capsys,
        *("--clients", 1000, "--cohort", 100, "--rounds", 50, "--epsilon", 8, "--delta", 1e-4),
    )
    assert (result["unit"], result["steps"], result["sample_rate"]) == ("client", 50, 0.1)
    assert 7.95 < result["epsilon"] <= 8
    assert result["epsilon"] == epsilon([Mechanism(result["noise_multiplier"], 0.1, 50)], 1e-4)


def test_for_people_it_prints_a_table(monkeypatch, capsys):
    assert main_status(monkeypatch, "privacy", *SMALL, "--noise-multiplier", 1) == 0
    text = capsys.readouterr().out
    assert "noise multiplier" in text
    assert "Poisson" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--epsilon", 1, "--delta", 0.001], "less than 1 / 2000"),
        ([], "give one of the two"),
        (["--epsilon", 1, "--noise-multiplier", 1], "give one of the two"),
        (["--epsilon", -1], "above 0"),
        (["--epsilon", 1, "--batch-size", 3000], "at most the 2000 examples"),
    ],
)
def test_what_makes_no_sense_is_refused(monkeypatch, capsys, change, expected):
    assert main_status(monkeypatch, "privacy", *SMALL, *change) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "found none of them"),
        (["--examples", 100, "--epochs", 1], "found --examples, --epochs"),
        (["--clients", 100], "found --clients"),
        (["--clients", 100, "--cohort", 10, "--examples", 100], "found --examples, --clients, --cohort"),
        (["--clients", 100, "--cohort", 101], "--cohort: expected at most the 100 clients"),
        (["--clients", 100000, "--cohort", 10], "less than 1 / 100000 (the clients)"),
    ],
)
def test_one_unit_is_asked_about_and_all_of_its_numbers_given(monkeypatch, capsys, options, expected):
    assert main_status(monkeypatch, "privacy", *options, "--delta", 1e-4, "--epsilon", 1) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
