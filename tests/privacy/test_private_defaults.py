"""A config that works needs one key to be private; what is set and does not go with that stays an error."""

import numpy as np
import pytest
from run_helpers import Config, changed, classification_config, tiny_bert, write_data

pytest.importorskip("opacus", reason="needs the extra: pip install 'fedsb[dp]'")

from fedsb.cli.doctor import examine
from fedsb.cli.quickstart.recipe import quickstart_config
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.private_defaults import notes_on_defaults
from fedsb.errors import InputError
from fedsb.methods import METHODS
from fedsb.runner.privacy_forecast import DROWNS, Forecast, forecast

PLAIN: Config = {
    "model": {"path": "m"},
    "task": {"kind": "classification", "text": ["t"], "labels": ["a", "b"]},
    "data": {"train": "a.csv", "test": "b.csv"},
}


def private(**changes) -> RunConfig:
    return RunConfig.from_dict(changed(PLAIN, **{"privacy": {"epsilon": 3.0}, **changes}))


@pytest.mark.parametrize("method", [m.name for m in METHODS.all() if m.experts is None and not m.stays])
def test_epsilon_alone_makes_any_method_private(method):
    check_settings(private(method__name=method))


def test_what_is_filled_in_is_said():
    config = private()
    assert (config.method.init.kind, config.method.init.head_warmup) == ("weights", None)
    assert config.privacy.clip_norm == 1.0
    (line,) = notes_on_defaults(config)
    assert "method.init.kind: weights (without: gradient)" in line
    assert not list(notes_on_defaults(RunConfig.from_dict(PLAIN)))
    assert RunConfig.from_dict(config.model_dump(mode="json")) == config


def test_a_whole_client_is_protected_with_equal_weights():
    config = private(privacy={"unit": "client", "epsilon": 3.0})
    check_settings(config)
    assert config.federation.weighting == "uniform"


@pytest.mark.parametrize("key", ["private", "public"])
def test_a_start_that_may_look_at_gradients_does(key):
    config = private(method__init={key: True if key == "private" else "p.csv"})
    check_settings(config)
    assert config.method.init.kind == "gradient"
    assert (config.method.init.head_warmup is None) == (key == "private")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"method__init__kind": "gradient"}, r"method\.init\.kind"),
        ({"method__init__head_warmup": {"rounds": 1}}, r"method\.init\.head_warmup"),
        ({"training__grad_clip": 1.0}, r"training\.grad_clip"),
        ({"training__class_weights": "balanced"}, r"training\.class_weights"),
        (
            {"privacy": {"unit": "client", "epsilon": 3.0}, "federation__weighting": "examples"},
            r"federation\.weighting",
        ),
    ],
)
def test_what_is_set_and_conflicts_stays_an_error(changes, key):
    with pytest.raises(InputError, match=rf"^{key}: "):
        check_settings(private(**changes))


def test_weights_of_classes_that_are_known_without_the_rows_go_with_privacy():
    check_settings(private(training__class_weights={"a": 1, "b": 4}))


def test_the_quickstart_needs_one_key_too(tmp_path):
    check_settings(quickstart_config(tmp_path, ["privacy.epsilon=8"]))


# The forecast


@pytest.mark.parametrize("unit", ["example", "client"])
def test_the_forecast_has_the_numbers_of_the_run_s_plan(unit):
    config = private(privacy={"unit": unit, "epsilon": 3.0, "delta": 1e-4}, federation__rounds=2)
    foreseen = forecast(config, [96, 128, 160], 1000)
    assert foreseen.epsilon == pytest.approx(3.0, rel=0.01)
    assert (foreseen.steps, foreseen.batch, foreseen.parties) == {
        "example": (6, 32, 3),
        "client": (2, 3, 1),
    }[unit]
    lines = list(foreseen.lines())
    assert "epsilon 3 at delta 0.0001" in lines[0]
    assert foreseen.signal_to_noise < DROWNS
    assert lines[1].startswith("warning: the noise on 1,000 trained numbers will drown")


def test_a_large_batch_of_few_numbers_is_worth_no_warning():
    assert len(list(Forecast("example", 0.5, 35, 256, 1, 49_152, 3.0, 1e-5).lines())) == 1


def test_signal_to_noise_is_that_of_steps_that_all_go_one_way():
    rng, steps, batch, parties, numbers, noise = np.random.default_rng(0), 12, 32, 3, 400, 1.5
    foreseen = Forecast("example", noise, steps, batch, parties, numbers, 3.0, 1e-5)
    drawn = rng.normal(0, noise / batch, (50, steps, parties, numbers)).mean(2).sum(1)
    measured = steps / np.linalg.norm(drawn, axis=1).mean()  # the clip norm is 1
    assert foreseen.signal_to_noise == pytest.approx(measured, rel=0.03)


def test_the_doctor_foresees_the_noise_of_private_runs_alone(tmp_path):
    write_data(tmp_path, train=30, test=6)
    settings = {"method__init": {}, "federation__rounds": 1, "training__max_length": "auto"}
    plain = classification_config(tiny_bert(tmp_path / "bert"), tmp_path, **settings)
    found = {}
    for name, privacy in (("plain", None), ("private", {"epsilon": 8.0, "delta": 0.01})):
        findings = list(examine(RunConfig.from_dict(changed(plain, privacy=privacy))))
        assert all(finding.ok for finding in findings)
        found[name] = [finding.detail for finding in findings if finding.what == "privacy"]
    assert not found["plain"]
    assert "method.init.kind: weights" in found["private"][0]
    assert "epsilon 8 at delta 0.01, for each example" in found["private"][1]
    assert found["private"][2].startswith("warning: ")
