"""`fedsb audit`: a bound below the stated epsilon, above it with half the noise gone; the odds."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from run_helpers import classification_config, main_status, tiny_bert, write_config, write_data
from scipy.stats import norm

from fedsb import RunConfig, run
from fedsb.cli.terminal import show_audit
from fedsb.errors import InputError
from fedsb.federation import private_training
from fedsb.privacy import client_level
from fedsb.privacy.accounting import Mechanism, deltas, epsilon
from fedsb.privacy.noise import add_noise, gaussian_like
from fedsb.privacy.odds import best_true_positive_rates, in_words
from fedsb.runner.audit import audit

PRIVATE = {"unit": "example", "epsilon": 2.0, "delta": 1e-5, "clip_norm": 0.5, "insecure_seed": 5}

CLIENTS = {"privacy": PRIVATE | {"unit": "client"}, "federation__weighting": "uniform"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=6)
    return folder


def config_of(world, **changes):
    fixed = {
        "federation__clients": 2,
        "federation__rounds": 1,
        "method__init": {"kind": "weights"},
        "method__rank": 32,
        "method__targets": "all-linear",
        "training__batch_size": 30,
        "privacy": PRIVATE,
    }
    return classification_config(world / "bert", world / "data", **fixed | changes)


def found_with(monkeypatch, config, divisor, **how):
    """The audit of a run whose noise is divided."""
    with monkeypatch.context() as patch:
        patch.setattr(private_training, "add_noise", lambda t, std, s: add_noise(t, std / divisor, s))
        patch.setattr(client_level, "gaussian_like", lambda t, std, s: gaussian_like(t, std / divisor, s))
        return audit(RunConfig.from_dict(config), **how)


@pytest.mark.parametrize(("unit", "seed"), [("example", 5), ("client", 9)])
def test_a_correct_run_is_below_and_half_the_noise_is_caught(world, monkeypatch, unit, seed):
    """Of fixed seeds: at this size half the noise is proven in nine draws of sixteen."""
    privacy = PRIVATE | {"unit": unit, "insecure_seed": seed}
    changes = {"privacy": privacy, "federation__weighting": "uniform"}
    whole, half = (found_with(monkeypatch, config_of(world, **changes), divisor) for divisor in (1, 2))
    assert whole["canaries"] == 10_000
    assert whole["epsilon_stated"] == pytest.approx(2.0, rel=0.01)
    assert 0.5 < whole["epsilon_at_least"] <= whole["epsilon_stated"] < half["epsilon_at_least"]
    assert (whole["holds"], half["holds"]) == (True, False)
    assert "DOES NOT HOLD" in half["statement"]
    assert "as it should be" in whole["statement"]


def test_a_run_keeps_what_its_audit_found(world, tmp_path, monkeypatch, capsys):
    """With sampling, several steps and rounds, and a clip norm that follows; nothing of the run changes."""
    privacy = {**PRIVATE, "insecure_seed": None, "quantile": 0.5}
    config = config_of(world, privacy=privacy, federation__rounds=2, training__batch_size=10)
    folder = run(RunConfig.from_dict(config), tmp_path / "run").folder
    before = (folder / "privacy.jsonl").read_bytes()
    assert main_status(monkeypatch, "audit", str(folder), "--canaries", "200", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "audit.json").read_text())
    assert (found["canaries"], found["steps"]) == (200, 6)
    assert found["sampling_probability"] == pytest.approx(1 / 3)
    assert found["epsilon_stated"] == json.loads((folder / "summary.json").read_text())["privacy"]["epsilon"]
    assert found["holds"]
    printed = Console(file=io.StringIO(), width=10_000)
    show_audit(found, printed)
    assert printed.file.getvalue().strip() == found["statement"]
    page = (folder / "report.html").read_text()
    assert "Audit: 200 canaries (gradients of nobody in one client" in page
    assert "In odds: whoever knows all but whether one example was in" in page
    assert (folder / "privacy.jsonl").read_bytes() == before


def test_rows_as_canaries_prove_less_and_show_themselves_without_noise(world, monkeypatch):
    """A client's thirty rows, of which a step at full batch has those whose coin said so."""
    config = config_of(world, privacy=PRIVATE | {"epsilon": 0.5}, federation__rounds=3)
    found, bare = (found_with(monkeypatch, config, divisor, rows=True) for divisor in (1, 1000))
    assert (found["kind"], found["canaries"], found["steps"]) == ("rows", 30, 3)
    assert 0 < found["included"] < 30
    assert found["epsilon_at_least"] <= found["epsilon_stated"] < bare["epsilon_at_least"]
    assert "30 canaries (rows of one client)" in found["statement"]
    with pytest.raises(InputError, match="--inputs: rows are no canaries where the unit is one client"):
        audit(RunConfig.from_dict(config_of(world, **CLIENTS)), rows=True)


def test_what_cannot_be_audited_is_refused(world, tmp_path, monkeypatch, capsys):
    plain = write_config(tmp_path / "plain.yaml", config_of(world, privacy=None))
    assert main_status(monkeypatch, "audit", str(plain)) == 2
    assert "nothing to audit; set privacy.epsilon" in capsys.readouterr().err
    (tmp_path / "deployed").mkdir()
    (tmp_path / "deployed/partition.json").write_text('{"kind": "nodes"}')
    assert main_status(monkeypatch, "audit", str(tmp_path / "deployed")) == 2
    assert "its rows are at nodes" in capsys.readouterr().err


# The odds


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_the_odds_of_one_gaussian_are_its_trade_off_function(noise):
    """Neyman and Pearson: at a false-positive rate a the best test finds 1 - Phi(Phi^-1(1 - a) - 1 / z)."""
    best = best_true_positive_rates([Mechanism(noise, 1.0, 1)])
    for rate in (0.001, 0.01):
        exact = norm.sf(norm.isf(rate) - 1 / noise)
        assert exact - 1e-6 <= best[f"{rate:g}"] <= exact * 1.01 + 1e-4


def test_the_whole_curve_allows_less_than_epsilon_and_delta_alone():
    mechanisms = [Mechanism(1.0, 0.01, 1000)]
    at = epsilon(mechanisms, 1e-5)
    best = best_true_positive_rates(mechanisms)
    assert best["0.01"] < np.exp(at) * 0.01 + 1e-5
    curve = deltas(mechanisms, np.array([0.5, at]))
    assert curve[1] == pytest.approx(1e-5, rel=0.05)
    assert curve[0] > curve[1]


def test_without_noise_everybody_is_found():
    assert best_true_positive_rates([Mechanism(0.0, 0.1, 5)]) == {"0.001": 1.0, "0.01": 1.0}
    assert best_true_positive_rates([]) == {"0.001": 0.001, "0.01": 0.01}


def test_the_odds_in_words():
    said = in_words({"0.001": 0.0201, "0.01": 0.08001}, "one example")
    assert "at most 2.01 % of those that were in (at 0.1 % false alarms)" in said
    assert "at most 8.01 % of those that were in (at 1 % false alarms)" in said
