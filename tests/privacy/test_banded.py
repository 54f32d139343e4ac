"""Noise that cancels over steps: its matrix against a dense one, its accountant against sampled losses,
runs."""

import math

import numpy as np
import pytest
import torch
from run_helpers import classification_config, main_status, metrics_of, tiny_bert, write_config, write_data
from scipy.linalg import toeplitz
from scipy.optimize import brentq

from fedsb import RunConfig, run
from fedsb.federation.training import ClientFailed
from fedsb.privacy.accounting import Mechanism, deltas, epsilon
from fedsb.privacy.banded import BandedNoise, chosen_column, coefficients, sum_error
from fedsb.privacy.calibration import rough_noise
from fedsb.privacy.correlated import Correlated
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ExamplePlan
from fedsb.runner.prepare_privacy import prepare_privacy

STEPS = 24


def dense(column, steps=STEPS):
    """C as a whole matrix."""
    first = np.zeros(steps)
    first[: len(column)] = column
    return np.tril(toeplitz(first))


@pytest.mark.parametrize("bands", [1, 2, 5, 24])
def test_its_sensitivity_and_error_are_those_of_the_dense_matrix(bands):
    column = coefficients(bands, STEPS)
    C, ones = dense(column), np.tril(np.ones((STEPS, STEPS)))
    assert np.linalg.norm(C, axis=0).max() == pytest.approx(1)
    error = np.linalg.norm(ones @ np.linalg.inv(C)) / math.sqrt(STEPS)
    assert sum_error(column, STEPS) == pytest.approx(error)
    draw = np.random.default_rng(0)
    for first in range(bands):  # all steps of one unit, with gradients of length 1 in any direction
        taken = range(first, STEPS, bands)
        gradients = np.zeros((STEPS, 3))
        directions = draw.standard_normal((len(taken), 3))
        gradients[list(taken)] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        moved = C @ gradients
        assert np.linalg.norm(moved) <= math.sqrt(len(taken)) * (1 + 1e-12)
        each = C[:, list(taken)]
        assert np.abs(each.T @ each - np.diag(np.diag(each.T @ each))).max() < 1e-12, "columns overlap"


def test_no_other_columns_near_it_have_less_error():
    column, draw = coefficients(4, STEPS), np.random.default_rng(1)
    for _ in range(50):
        other = column + draw.normal(0, 0.02, 4)
        assert sum_error(other / np.linalg.norm(other), STEPS) >= sum_error(column, STEPS) * (1 - 1e-6)
    assert sum_error(coefficients(1, STEPS), STEPS) == pytest.approx(math.sqrt((STEPS + 1) / 2))


@pytest.mark.parametrize("first", [0, 7])
def test_noise_made_step_by_step_is_the_dense_one(first):
    """Also of a run that was stopped, which draws what came before again."""
    column = coefficients(4, STEPS)
    shapes = [torch.zeros(3, 2), torch.zeros(5)]

    def stream(step):
        return Keystream.derived(b"secret", step)

    whole = Correlated(column, 0, stream)
    made = [torch.cat([t.flatten() for t in whole.next(shapes, 2.0)]) for _ in range(STEPS)]
    again = Correlated(column, first, stream)
    assert all(
        torch.equal(a, b) for a, b in zip(again.next(shapes, 1.0), _parts(made[first] / 2), strict=True)
    )
    plain = Correlated([1.0], 0, stream)
    z = np.stack([torch.cat([t.flatten() for t in plain.next(shapes, 1.0)]).numpy() for _ in range(STEPS)])
    np.testing.assert_allclose(np.stack(made), 2.0 * np.linalg.solve(dense(column), z), atol=1e-10)


def _parts(flat):
    return [flat[:6].view(3, 2), flat[6:]]


def test_the_sums_of_steps_have_the_error_that_is_told():
    column, draw = coefficients(6, STEPS), torch.Generator().manual_seed(0)
    noise = BandedNoise(column)
    made = [noise.next([torch.randn(20_000, generator=draw).double()])[0] for _ in range(STEPS)]
    sums = torch.stack(made).cumsum(0)
    assert float(sums.square().mean().sqrt()) == pytest.approx(sum_error(column, STEPS), rel=0.01)


def test_a_unit_is_drawn_in_every_so_many_th_step_alone():
    plan = ExamplePlan(
        num_examples=90, expected_batch_size=10, steps_per_round=2000, rounds=2, clip_norm=1.0,
        column=tuple(coefficients(3, 4000)),
    )  # fmt: skip
    assert plan.sampling_probability == pytest.approx(1 / 3)
    batches = list(plan.batches(Keystream(bytes(32)), 2))
    for step, batch in enumerate(batches, start=2000):
        assert all(unit % 3 == step % 3 for unit in batch)
    assert np.mean([len(batch) for batch in batches]) == pytest.approx(10, rel=0.03)
    assert plan.whole == Mechanism(0.0, plan.sampling_probability, 1334)
    rounds = [plan.of_round(number).steps for number in (1, 2)]
    assert (rounds, sum(rounds)) == ([667, 667], plan.whole.steps)


def test_its_accountant_is_what_losses_sampled_from_the_whole_mechanism_say():
    """Six steps of three bands; a unit of the first third, whose steps 0 and 3 are coins of 0.4."""
    column, noise, q = coefficients(3, 6), 1.3, 0.4
    C, draw, size = dense(column, 6), np.random.default_rng(2), 400_000
    shifts = [C[:, 0] * a + C[:, 3] * b for a in (0, 1) for b in (0, 1)]
    chances = [(q if a else 1 - q) * (q if b else 1 - q) for a in (0, 1) for b in (0, 1)]
    which = draw.choice(4, size, p=chances)
    seen = np.stack(shifts)[which] + noise * draw.standard_normal((size, 6))
    ratio = sum(p * np.exp((seen @ s - s @ s / 2) / noise**2) for p, s in zip(chances, shifts, strict=True))
    curve = deltas([Mechanism(noise, q, 2)], np.array([0.25, 0.5, 1.0, 1.5]), grid=1e-3)
    for at, stated in zip((0.25, 0.5, 1.0, 1.5), curve, strict=True):
        sampled = np.maximum(0.0, 1 - math.exp(at) / ratio)
        spread = sampled.std() / math.sqrt(size)
        assert sampled.mean() == pytest.approx(stated, abs=4 * spread + 1e-4)


@pytest.mark.parametrize(("budget", "bands", "less"), [(1.0, 6, 28), (3.0, 9, 37), (10.0, 16, 45)])
def test_the_error_is_less_than_with_independent_noise(budget, bands, less):
    """Three clients of 20,000 rows, 51 steps of 96: 28, 37 and 45 % less at epsilon 1, 3 and 10."""
    q, steps, delta = 96 / 20_000, 51, 1e-5

    def error(bands):
        chance, times = bands * q, -(-steps // bands)

        def spent(noise, **how):
            return epsilon([Mechanism(noise, chance, times)], delta, **how)

        rough = rough_noise(budget, delta, lambda z: [Mechanism(z, chance, times)])
        noise = brentq(lambda z: spent(z, grid=5e-3) - budget, rough * 0.7, rough * 1.02, xtol=1e-3)
        return noise * sum_error(coefficients(bands, steps), steps)

    assert 100 * (1 - error(bands) / error(1)) == pytest.approx(less, abs=1.5)


def test_bands_are_chosen_by_noise_and_error():
    assert len(chosen_column(50, 50, lambda bands: 1.0)) == 48, "more bands are better at one noise"
    assert len(chosen_column(50, 5, lambda bands: 1.0)) == 4
    assert len(chosen_column(50, 50, lambda bands: float(bands))) == 1
    assert len(chosen_column(50, 50, lambda bands: 1.0, 7)) == 7


# Runs


BANDED = {"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5, "mechanism": "banded"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("banded")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=90, test=6)
    return folder


def config_of(world, **changes):
    fixed = {
        "federation__rounds": 3,
        "method__init": {"kind": "weights"},
        "training__optimizer": "sgd",
        "training__momentum": 0.9,
        "training__batch_size": 5,
        "privacy": BANDED,
    }
    return classification_config(world / "bert", world / "data", **fixed | changes)


def test_a_run_keeps_to_its_budget_and_says_how_noise_is_correlated(world, tmp_path):
    facts = run(RunConfig.from_dict(config_of(world)), tmp_path / "run").summary["privacy"]
    assert 7.5 < facts["epsilon"] <= 8.0
    assert 1 < facts["bands"] <= 6
    steps = -(-18 // facts["bands"])
    assert {of["steps"] for of in facts["per_client"].values()} == {steps}
    assert f"correlated by a matrix of {facts['bands']} bands" in facts["statement"]


def test_whole_clients_with_banded_noise_at_the_server(world, tmp_path):
    privacy = BANDED | {"unit": "client", "bands": 2, "delta": 1e-2, "noise_multiplier": 1.0, "epsilon": 50.0}
    changes = {
        "federation__clients": 30,
        "federation__clients_per_round": 6,
        "federation__weighting": "uniform",
    }
    config = config_of(world, privacy=privacy, federation__rounds=4, **changes)
    folder = run(RunConfig.from_dict(config), tmp_path / "run").folder
    lines = metrics_of(folder)
    for line in lines[1:]:
        asked = [*line["clients"], *(r["client"] for r in line["rejected"])]
        assert all(client % 2 == (line["round"] - 1) % 2 for client in asked)
    assert lines[-1]["epsilon"] == pytest.approx(epsilon([Mechanism(1.0, 2 * 6 / 30, 2)], 1e-2))


def test_a_round_is_never_done_twice_under_one_noise(world, tmp_path):
    config = RunConfig.from_dict(config_of(world, privacy=BANDED | {"bands": 2, "noise_multiplier": 2.0}))
    private = prepare_privacy(config, dict.fromkeys(range(3), 30), tmp_path)
    private.release(0, 1, lambda: b"")
    with pytest.raises(ClientFailed, match="this round was begun before and its noise was used"):
        private.trainer(0, 1)
    assert private.trainer(0, 2) is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": BANDED | {"bands": 40}}, "privacy.bands: 40 is more than the 18 noisy steps of the run"),
        ({"privacy": BANDED | {"bands": 12}}, "privacy.bands: with 12 a unit would be in every batch"),
        ({"training__optimizer": "adamw", "training__momentum": 0.0}, "is for training.optimizer: sgd"),
        ({"federation__clients_per_round": 2}, "needs every client in every round"),
        ({"method__name": "rolora"}, "rolora does not train the same numbers in every round"),
        ({"privacy": {**BANDED, "quantile": 0.5}}, "needs one clip norm for all steps"),
        ({"privacy": {**BANDED, "mechanism": "independent", "bands": 4}}, "bands are for mechanism: banded"),
    ],
    ids=["long", "full", "adamw", "cohorts", "turns", "quantile", "alone"],
)
def test_what_bands_do_not_go_with_is_one_message_and_exit_2(
    world, tmp_path, monkeypatch, capsys, changes, said
):
    file = write_config(tmp_path / "run.yaml", config_of(world, **changes))
    assert main_status(monkeypatch, "run", str(file), "--out", str(tmp_path / "run")) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
