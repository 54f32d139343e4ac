"""Scores at the clients under privacy: what one row can do to them, what they cost, what of them leaves."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from run_helpers import changed, classification_config, metrics_of, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.cli.status import run_status
from fedsb.config.checks import check_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation import scores as federation_scores
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.noise import NoiseSource
from fedsb.report.progress import Silent
from fedsb.runner import clients
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_privacy import prepare_privacy
from fedsb.runner.site_data import hold_out
from fedsb.tasks.logits import class_sums, of_classes, of_numbers, scores_of_counts
from fedsb.tasks.totals import of_responses

PRIVACY = {"unit": "example", "epsilon": 3.0, "delta": 1e-3, "score_noise_multiplier": 8.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noised-scores")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=6)
    return folder


def config_of(world, **changes):
    few = {
        "data__client_test": 0.2,
        "data__test": ...,
        "federation": {"clients": 2, "rounds": 3},
        "method__targets": ["query"],
        "method__init": {"kind": "weights"},
        "evaluation": {"at_clients": True, "every": 2},
        "privacy": PRIVACY,
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def charged(folder):
    return [json.loads(line) for line in (folder / "privacy.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- sensitivity


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_row_moves_the_counts_by_at_most_the_root_of_three(size):
    """By blanking each row of many predictions; right answers reach the bound."""
    rng, totals = np.random.default_rng(0), of_classes(size).noised
    moved = []
    for _ in range(20):
        logits, labels = rng.normal(size=(12, size)), rng.integers(size, size=12)
        whole = class_sums(logits, labels, np.zeros(12))
        for row in range(12):
            rest = class_sums(np.delete(logits, row, 0), np.delete(labels, row), np.zeros(11))
            moved.append(math.sqrt(sum(((whole[n] - rest[n]) ** 2).sum() for n in totals.shapes)))
    assert max(moved) == pytest.approx(totals.sensitivity) == pytest.approx(math.sqrt(3))


def test_losses_and_other_sums_have_no_noised_form():
    assert set(of_classes(3).noised.shapes) == {"labelled", "predicted", "right"}
    assert of_numbers().noised is None
    assert of_responses().noised is None


def test_a_row_is_predicted_alone(world):
    """In 16 bits a long row would move how its batch is rounded, and so the others' predictions."""
    config = RunConfig.from_dict(config_of(world))
    data, seen = prepare_data(config), []
    measured = SimpleNamespace(sums=class_sums(np.eye(3), np.arange(3), np.zeros(3)))
    task = replace(data.task, measure=lambda *_, **options: seen.append(options["batch_size"]) or [measured])
    data = replace(data, task=task)
    local_model = SimpleNamespace(exchange=SimpleNamespace(keeps=False))
    for private in (None, object()):
        clients.local_clients(config, data, local_model, private)(0).measure(None, [])
    assert seen == [64, 1]


def test_which_rows_are_held_out_depends_on_no_row(world):
    """A draw by labels would let one row decide which others train."""
    config = RunConfig.from_dict(config_of(world))
    part, draw = [[*range(60)]], np.random.default_rng(1)
    draws = [hold_out(config, part, [str(label) for label in draw.integers(3, size=60)]) for _ in range(3)]
    assert draws[0] == draws[1] == draws[2]
    _, ((*held,),) = hold_out(config, [[*range(1243)]], None)
    assert len(held) == 240, "two digits, since the number is told"


def test_counts_that_are_to_be_noised_do_not_leave_without_noise(monkeypatch):
    monkeypatch.setattr(federation_scores, "open_broadcast", lambda *_, **__: (None, {}, {}))
    measured = SimpleNamespace(sums=class_sums(np.eye(3), np.arange(3), np.ones(3)))
    with pytest.raises(RunFailed, match="stay here"):
        federation_scores.client_scores(
            b"",
            SimpleNamespace(model=None),
            [{}],
            lambda *_: [measured],
            of_classes(3).noised,
            client=0,
            seed=0,
            part=None,
        )


# ---------------------------------------------------------------- the noise and its scores


def test_the_noise_has_its_standard_deviation_and_a_key_of_its_own(world, tmp_path):
    fixed = PRIVACY | {"epsilon": None, "noise_multiplier": 1.0}
    config = RunConfig.from_dict(config_of(world, privacy=fixed))
    private = prepare_privacy(config, {0: 24}, tmp_path, tests={0: 6})
    zeros = torch.zeros(4000)
    drawn = [private.score_noise(0, number, math.sqrt(3))(zeros) for number in (1, 1)]
    assert drawn[0].std() == pytest.approx(8 * math.sqrt(3), rel=0.05)
    assert not torch.equal(*drawn), "a release that is repeated has new noise"
    private = replace(private, noise=NoiseSource(insecure_seed=1))
    fixed = [private.score_noise(0, number, 1.0)(zeros) for number in (1, 2, 1)]
    assert torch.equal(fixed[0], fixed[2])
    assert not torch.equal(fixed[0], fixed[1])


@pytest.mark.parametrize("std", [0.0, 1.0, 30.0, 1e5])
def test_scores_of_noised_counts_are_possible_and_accuracy_is_unbiased(std):
    """Where they need no clamp; without noise they are those of the counts."""
    rng, count, totals = np.random.default_rng(2), 400, of_classes(4).noised
    labels = rng.integers(4, size=count)
    logits = np.eye(4)[labels] + rng.normal(size=(count, 4))
    sums = {n: class_sums(logits, labels, np.zeros(count))[n] for n in totals.shapes}
    plain = scores_of_counts(sums)
    made = []
    for _ in range(300):
        noised = {name: value + std * rng.normal(size=4) for name, value in sums.items()}
        assert totals.fault(noised, count) is None
        made.append(totals.metrics(noised, count))
        assert all(-1 <= value <= 1 for value in made[-1].values())
        assert made[-1]["macro_f1"] >= 0
    if std == 0:
        assert made[0] == pytest.approx(plain)
    if std <= 30:
        error = totals.errors(std, count)["accuracy"]
        each = [scores["accuracy"] for scores in made]
        assert np.mean(each) == pytest.approx(plain["accuracy"], abs=1e-9 + 4 * error / math.sqrt(300))
        assert np.std(each) == pytest.approx(error, rel=0.2, abs=1e-9)


@pytest.mark.parametrize("value", [1e10, -3e38, 3e38])
def test_a_hostile_count_is_refused(value):
    sums = {name: np.full(3, value) for name in of_classes(3).noised.shapes}
    assert "beyond 1e+09" in of_classes(3).noised.fault(sums, 10)
    most = {name: np.full(3, math.copysign(1e9, value)) for name in sums}
    assert all(math.isfinite(score) for score in of_classes(3).noised.metrics(most, 10).values())


# ---------------------------------------------------------------- what they cost


def test_a_private_run_pays_for_each_score_out_of_one_budget(world, tmp_path):
    """Scores before round 1, after rounds 2 and 3; epsilon is dp-accounting's own of all releases."""
    config = config_of(world)
    summary = run(RunConfig.from_dict(config), tmp_path / "run").summary
    facts, lines = summary["privacy"], charged(tmp_path / "run")
    for client in (0, 1):
        paid = [(line["phase"], line["round"]) for line in lines if line["client"] == client]
        assert paid == [("score", 0), ("round", 1), ("round", 2), ("score", 2), ("round", 3), ("score", 3)]
    direct = PLDAccountant()
    gaussian = dp_accounting.GaussianDpEvent(facts["noise_multiplier"])
    direct.compose(dp_accounting.PoissonSampledDpEvent(10 / 24, gaussian), facts["per_client"]["0"]["steps"])
    direct.compose(dp_accounting.GaussianDpEvent(8.0), 3)
    assert facts["epsilon"] == pytest.approx(direct.get_epsilon(1e-3), rel=2e-3)
    assert 2.98 < facts["epsilon"] <= 3.0
    assert 0.4 < facts["epsilon_scores"] < facts["epsilon_rounds"] < 3.0
    assert (facts["per_client"]["1"]["scores"], facts["score_noise_multiplier"]) == (3, 8.0)
    assert "scored at most 3 times" in facts["statement"]
    assert "one example, to train or to be scored on," in facts["statement"]
    records = metrics_of(tmp_path / "run")
    assert [sorted(record.get("sites", {})) for record in records] == [["0", "1"], [], ["0", "1"], ["0", "1"]]
    assert 0 < records[0]["epsilon"] < records[1]["epsilon"] < records[-1]["epsilon"] == facts["epsilon"]
    assert "loss" not in summary["final"]
    noise = summary["sites"]["noise"]
    assert noise["count_std"] == pytest.approx(8 * math.sqrt(3))
    assert noise["standard_errors"]["0"]["accuracy"] == pytest.approx(8 * 3 / 6)
    assert noise["standard_error_of_mean"]["accuracy"] == pytest.approx(8 * 3 / 6 / math.sqrt(2))
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert partition["tests"] == {"0": 6, "1": 6}, "which rows these are stays in private/"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Noised, for privacy" in page


class Killed(BaseException):
    """As SIGKILL: nothing of the run gets to see it."""


def test_a_score_that_was_cut_off_is_paid_and_paid_again(world, tmp_path, monkeypatch):
    planned = [Mechanism(2.0, 10 / 24, 3), Mechanism(8.0, 1.0, 2)]
    budget = {"noise_multiplier": 2.0, "epsilon": 1.001 * epsilon(planned, 1e-3)}
    config = config_of(world, federation__rounds=1, privacy=PRIVACY | budget)
    real = clients.client_scores

    def killed(*arguments, **options):
        if options["client"] == 1:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(clients, "client_scores", killed)
    with pytest.raises(Killed):
        run(RunConfig.from_dict(config), tmp_path / "run")
    assert [(line["client"], line["round"]) for line in charged(tmp_path / "run")] == [(0, 0)]
    status = run_status(tmp_path / "run")
    assert status["paid_ahead"] == 1
    assert status["epsilon"] > 0
    monkeypatch.undo()
    left_out = []
    told = type("Told", (Silent,), {"client_ends": lambda self, *outcome: left_out.append(outcome)})()
    run(RunConfig.from_dict(config), tmp_path / "run", resume=True, progress=told)
    scores = [line["round"] for line in charged(tmp_path / "run") if line["phase"] == "score"]
    assert sorted(scores) == [0, 0, 0, 1], "the repeated one leaves client 0 no room for its last"
    assert [client for client, why in left_out if why] == [0]
    assert "privacy budget of epsilon" in next(why for _, why in left_out if why)
    assert list(metrics_of(tmp_path / "run")[-1]["sites"]) == ["1"]
    assert run_status(tmp_path / "run")["paid_ahead"] == 0


REFUSED = {
    "no noise": (
        {"privacy": {"epsilon": 8.0}},
        r"multiplier, e.g. 10: 3 scores .* epsilon 0\.85 or",
    ),
    "no score": ({"evaluation": {}, "data__client_test": None, "data__test": 0.1}, "no client is scored"),
    "clients": ({"privacy": PRIVACY | {"unit": "client"}}, "unit: client nobody may learn"),
    "baselines": ({"evaluation__baselines": ["local"]}, "evaluation.baselines: they train on private rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_noise_is_refused(world, name):
    changes, says = REFUSED[name]
    with pytest.raises(InputError, match=says):
        check_settings(RunConfig.from_dict(config_of(world, **changes)))


def test_what_noise_cannot_cover_or_epsilon_cannot_pay_is_refused(world, tmp_path):
    numbers = config_of(world, task={"kind": "classification", "text": ["text"], "label": "score"})
    numbers = changed(numbers, task__labels=None)
    with pytest.raises(InputError, match=r"evaluation.at_clients: with privacy clients give counts"):
        prepare_data(RunConfig.from_dict(numbers))
    dear = PRIVACY | {"epsilon": 1.0, "score_noise_multiplier": 2.0}
    dear = RunConfig.from_dict(config_of(world, privacy=dear))
    with pytest.raises(InputError, match=r"higher privacy.score_noise_multiplier"):
        prepare_privacy(dear, {0: 24}, tmp_path, tests={0: 6})
