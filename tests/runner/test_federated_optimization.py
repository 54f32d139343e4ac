"""Whole runs with FedProx, a server's own steps and control variates: neutral settings, resume, refusals."""

import pytest
import torch
from run_helpers import (
    adapter_bytes,
    classification_config,
    metrics_of,
    timeless,
    tiny_bert,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.runner import loop as runner
from fedsb.runner.checkpoint import load_checkpoint

ADAM = {"optimizer": "adam", "learning_rate": 0.01, "momentum": 0.9}
PARTLY = {"federation__clients": 4, "federation__clients_per_round": 2, "federation__rounds": 4}
SGD = {"training__optimizer": "sgd", "training__learning_rate": 0.05}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimization")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=36, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "method__rank": 4,
        "method__targets": ["query"],
        "method__init": {"kind": "weights", "head_warmup": None},
        "federation__rounds": 2,
        "evaluation__every": None,
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def do(config, folder, **options):
    return run(RunConfig.from_dict(config), folder, **options).folder


def test_a_servers_step_of_the_whole_update_is_a_plain_run_bit_for_bit(world, tmp_path):
    plain = do(config_of(world), tmp_path / "plain")
    neutral = do(config_of(world, federation__server={"momentum": 0}), tmp_path / "neutral")
    assert adapter_bytes(neutral) == adapter_bytes(plain)
    assert timeless(neutral) == timeless(plain)


@pytest.mark.parametrize(
    "changes",
    [{"federation__server": ADAM}, {"federation__proximal": 5.0}, {"federation__server": {"momentum": 0.9}}],
    ids=["adam", "proximal", "momentum"],
)
def test_each_changes_the_model_and_not_what_travels(world, tmp_path, changes):
    plain = do(config_of(world), tmp_path / "plain")
    other = do(config_of(world, **changes), tmp_path / "other")
    assert adapter_bytes(other) != adapter_bytes(plain)
    for a, b in zip(metrics_of(plain), metrics_of(other), strict=True):
        assert (a["upload_bytes"], a["download_bytes"]) == (b["upload_bytes"], b["download_bytes"])


STOPPED = {
    "adam": {"federation__server": ADAM, **PARTLY},
    "control variates": {"federation__control_variates": True, **SGD, **PARTLY},
    "kept moments": {"training__moments": "kept", **PARTLY},
    "averaged moments": {"training__moments": "averaged", **PARTLY},
    "all": {
        "federation__server": {"optimizer": "yogi", "learning_rate": 0.01},
        "federation__control_variates": True,
        "federation__proximal": 0.1,
        **SGD,
        **PARTLY,
    },
}


class Killed(BaseException):
    """As good as SIGKILL here."""


@pytest.mark.parametrize("case", STOPPED)
def test_a_run_killed_between_rounds_goes_on_to_the_same_adapter(world, tmp_path, monkeypatch, case):
    config, folder = config_of(world, **STOPPED[case]), tmp_path / "killed"
    whole, real = do(config, tmp_path / "whole"), runner.play_round

    def killed(session, saved, number, chosen):
        if number == 3:
            raise Killed
        return real(session, saved, number, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "play_round", killed)
        with pytest.raises(Killed):
            do(config, folder)
    do(config, folder, resume=True)
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert timeless(folder) == timeless(whole)
    one, other = (load_checkpoint(each / "checkpoint") for each in (folder, whole))
    assert all(torch.equal(value, other.state.memory[name]) for name, value in one.state.memory.items())
    assert one.kept.keys() == other.kept.keys()


def test_the_ledger_has_the_control_variates_too(world, tmp_path):
    plain = metrics_of(do(config_of(world, **SGD), tmp_path / "plain"))
    controlled = metrics_of(
        do(config_of(world, **SGD, federation__control_variates=True), tmp_path / "controlled")
    )
    for a, b in zip(plain[1:], controlled[1:], strict=True):
        assert b["upload_parameters"] == 2 * a["upload_parameters"]
        assert b["upload_bytes"] - a["upload_bytes"] == 4 * a["upload_parameters"]
        assert b["download_bytes"] - a["download_bytes"] == pytest.approx(4 * a["upload_parameters"], abs=60)


@pytest.mark.parametrize("moments", ["kept", "averaged"])
def test_moments_of_noised_gradients_cost_no_privacy(world, tmp_path, moments):
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 1.0}
    lines = {
        kind: metrics_of(do(config_of(world, privacy=privacy, training__moments=kind), tmp_path / kind))
        for kind in ("fresh", moments)
    }
    assert [line["epsilon"] for line in lines["fresh"]] == [line["epsilon"] for line in lines[moments]]
    assert not any(line["rejected"] for line in lines[moments])


CONTROLS = {"federation__control_variates": True, **SGD}
REFUSED = {
    "a server's step of a method with more than a mean": (
        {"federation__server": {}, "method__name": "flora"},
        "federation.server: flora gives no averaged update",
    ),
    "a server's step over directions that turn": (
        {"federation__server": {}, "method__name": "fedsvd"},
        "federation.server: fedsvd gives no averaged update",
    ),
    "momentum over bases that are replaced": (
        {"federation__server": {}, "method__refresh_every": 1},
        "federation.server: momentum is over bases that method.refresh_every replaces",
    ),
    "control variates of what is not sent": (
        CONTROLS | {"method__name": "flora"},
        "federation.control_variates: flora does not send just what it trains",
    ),
    "control variates of what is folded": (
        CONTROLS | {"method__name": "ravan"},
        "federation.control_variates: ravan does not send just what it trains",
    ),
    "control variates with AdamW": (
        {"federation__control_variates": True},
        "federation.control_variates: .* set training.optimizer: sgd",
    ),
    "control variates under privacy": (
        CONTROLS | {"privacy": {"epsilon": 8.0}},
        "federation.control_variates: a client's own is made of its rows without noise",
    ),
    "control variates of some heads": (
        CONTROLS | {"method__heads": 2, "federation__client_heads": [2, 1, 1]},
        "federation.control_variates: not with federation.client_heads",
    ),
    "moments of SGD": (
        {"training__moments": "kept", **SGD},
        "training.moments: kept: sgd has none",
    ),
    "moments of factors in turns": (
        {"training__moments": "averaged", "method__name": "rolora"},
        "training.moments: averaged: what rolora trains is not the same numbers",
    ),
    "moments beside a client's noised update": (
        {
            "training__moments": "averaged",
            "privacy": {"epsilon": 8.0, "unit": "client"},
            "federation__weighting": "uniform",
        },
        "training.moments: averaged: not with privacy.unit: client",
    ),
    "control variates with momentum": (
        CONTROLS | {"training__momentum": 0.9},
        "federation.control_variates: with training.momentum",
    ),
    "control variates in processes": (
        CONTROLS | {"federation__processes": 2},
        "federation.control_variates: not with federation.processes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_with_one_message(world, case):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as error:
        check_settings(RunConfig.from_dict(config_of(world, **changes)))
    assert "\n" not in str(error.value)
