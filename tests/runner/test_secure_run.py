"""Simulated runs with secure aggregation: equal to plain ones to the quantization step; what is refused."""

import pytest
import torch
from run_helpers import (
    changed,
    classification_config,
    main_status,
    metrics_of,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation import wire
from fedsb.federation.secure.member import Member
from fedsb.federation.secure.server import KEYS
from fedsb.federation.start.messages import pack_start, unpack_start
from fedsb.federation.training import ClientFailed
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.runner import clients
from fedsb.runner.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("no_page")

SECURE = {"threshold": 0.67}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 2,
        "federation__partition": {"kind": "dirichlet", "alpha": 1.0},
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def state_of(folder):
    return load_checkpoint(folder / "checkpoint").state.vector


def both(config, folder):
    """The same run plain and secure."""
    for name, settings in (("plain", None), ("secure", SECURE)):
        told = changed(config, federation__secure_aggregation=settings)
        run(RunConfig.from_dict(told), folder / name)
    return state_of(folder / "plain"), state_of(folder / "secure")


@pytest.mark.parametrize("method", ["fed-sb", "fedit", "fedsvd"])
def test_a_secure_run_equals_the_plain_one(world, tmp_path, method):
    plain, secure = both(config_of(world, method__name=method), tmp_path)
    torch.testing.assert_close(plain, secure, rtol=0, atol=2e-4)
    for a, b in zip(metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "secure"), strict=True):
        assert a["clients"] == b["clients"]
        assert (a["train_loss"] or 0) == pytest.approx(b["train_loss"] or 0, abs=1e-3)


def test_a_server_steps_along_the_secure_mean_with_its_momentum(world, tmp_path):
    changes = {"federation__server": {"momentum": 0.9}, "federation__proximal": 0.1}
    plain, secure = both(config_of(world, **changes), tmp_path)
    torch.testing.assert_close(plain, secure, rtol=0, atol=5e-4)
    memory = [load_checkpoint(tmp_path / name / "checkpoint").state.memory for name in ("plain", "secure")]
    assert memory[0].keys() == memory[1].keys() != set()
    other, _ = both(config_of(world, federation__proximal=0.1), tmp_path / "no momentum")
    assert (plain - other).abs().max() > 2e-3


@pytest.mark.parametrize("rule", ["sign", "moments"])
def test_the_start_goes_through_it_too(world, tmp_path, rule):
    init = {"rule": rule, "upload": "sketch", "samples": 48, "head_warmup": {"rounds": 1, "steps": 5}}
    config = config_of(world, method__init=init, federation__rounds=1, training__learning_rate=1e-4)
    plain, secure = both(config, tmp_path)
    torch.testing.assert_close(plain, secure, rtol=0, atol=1e-3)
    plain, secure = (
        {(e.what, e.direction): e for e in load_checkpoint(tmp_path / n / "checkpoint").traffic}
        for n in ("plain", "secure")
    )
    assert secure.keys() >= {(KEYS, "up"), (KEYS, "down")}
    for way in ("up", "down"):
        both_ways = plain["head warm-up", way], secure["head warm-up", way]
        assert both_ways[0].parameters == both_ways[1].parameters
    warm, masked = plain["head warm-up", "down"], secure["head warm-up", "down"]
    assert 0 < masked.bytes - warm.bytes < masked.clients * 2000, "beside the head, what others sealed for it"
    assert sum(e.parameters for e in secure.values() if e.what.startswith("questions for")) == 0


def test_the_ledger_has_keys_and_shares_in_lines_of_their_own(world, tmp_path):
    both(config_of(world, federation__rounds=1), tmp_path)
    plain, secure = (
        {(e.what, e.direction): e.bytes for e in load_checkpoint(tmp_path / n / "checkpoint").traffic}
        for n in ("plain", "secure")
    )
    assert 0.9 * plain["updates", "up"] < secure["updates", "up"] < 1.1 * plain["updates", "up"]
    assert 0 < secure[KEYS, "up"] < 3 * 2000
    line = metrics_of(tmp_path / "secure")[1]
    assert line["upload_bytes"] == secure["updates", "up"] + secure[KEYS, "up"]


def test_no_key_touches_the_run_folder(world, tmp_path):
    config = config_of(world, federation__rounds=1, federation__secure_aggregation=SECURE)
    run(RunConfig.from_dict(config), tmp_path / "run")
    assert not [file for file in (tmp_path / "run").rglob("*") if "secure" in file.name or "key" in file.name]


def test_below_the_threshold_the_round_fails_and_a_resumed_run_ends_as_if_nothing_had_been(
    world, tmp_path, monkeypatch
):
    config = RunConfig.from_dict(config_of(world, federation__secure_aggregation=SECURE))
    run(config, tmp_path / "whole")
    original = clients.client_update

    def failing(broadcast, *arguments, client, **more):
        if wire.header_of(broadcast).round == 2 and client < 2:
            raise ClientFailed("away")
        return original(broadcast, *arguments, client=client, **more)

    monkeypatch.setattr(clients, "client_update", failing)
    with pytest.raises(RunFailed, match=r"round 2: 1 of 3 clients sent their numbers, .* needs 2 .*away"):
        run(config, tmp_path / "killed")
    monkeypatch.setattr(clients, "client_update", original)
    assert load_checkpoint(tmp_path / "killed/checkpoint").state.round == 1
    run(config, tmp_path / "killed", resume=True)
    torch.testing.assert_close(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"), rtol=0, atol=0)


def test_a_client_that_spoils_a_sum_is_left_out_and_the_round_asked_again(world, tmp_path, monkeypatch):
    original = Member.shares

    def worthless(member, question):
        facts, tensors = unpack_start(original(member, question))
        if member.client == 1:
            tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        return pack_start(facts, tensors)

    monkeypatch.setattr(Member, "shares", worthless)
    run(RunConfig.from_dict(config_of(world, federation__secure_aggregation=SECURE)), tmp_path / "run")
    for line in metrics_of(tmp_path / "run")[1:]:
        assert line["clients"] == [0, 2]
        assert [(r["client"], "committed itself to" in r["reason"]) for r in line["rejected"]] == [(1, True)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation__secure_aggregation": {"threshold": 4}}, "expected at most 3"),
        ({"federation__clients": 1}, "that client's update"),
        ({"method__name": "flora"}, "needs more of its clients' updates than their sum"),
        (
            {"federation__robust": {"average": "median"}, "federation__weighting": "uniform"},
            "federation.robust: a median",
        ),
        ({"federation__client_ranks": [4, 4, 2], "method__name": "fedit"}, "federation.client_ranks"),
        ({"federation__upload_dtype": "float16"}, "whole numbers of 32 bits"),
        ({"method__init": {"upload": "factors"}}, "take sketch"),
        ({"data__client_test": 0.2}, "no sum"),
        ({"method__refresh_every": 1}, "different messages"),
        ({"training__moments": "averaged"}, "beside an update"),
    ],
)
def test_what_needs_more_of_a_client_than_a_sum_is_refused(world, changes, said):
    config = config_of(world, **{"federation__secure_aggregation": SECURE} | changes)
    with pytest.raises(InputError, match=said) as refused:
        check_settings(RunConfig.from_dict(config))
    assert "config:" not in str(refused.value) or "client_ranks" in str(changes)


@pytest.mark.parametrize("threshold", [0.5, 2.5])
def test_a_threshold_is_a_share_above_a_half_or_a_count(world, threshold):
    with pytest.raises(InputError, match=r"federation.secure_aggregation.threshold"):
        RunConfig.from_dict(config_of(world, federation__secure_aggregation={"threshold": threshold}))


# Client-level privacy whose noise the clients share

CLIENT = {"unit": "client", "epsilon": 50.0, "delta": 1e-2, "clip_norm": 0.5, "honest": 0.6}


def test_clients_share_the_noise_and_the_statement_says_who_is_trusted(world, tmp_path):
    config = config_of(world, federation__secure_aggregation=SECURE, privacy=CLIENT)
    summary = run(RunConfig.from_dict(config), tmp_path / "run").summary["privacy"]
    assert summary["fewest_honest"] == 2
    assert summary["sampling"] == "none"
    assert 0 < summary["epsilon"] == summary["epsilon_rdp"] <= 50
    spent = epsilon([Mechanism(summary["noise_multiplier"], 1.0, 2)], 1e-2, accountant="rdp")
    assert summary["epsilon"] == pytest.approx(spent)
    assert "No server is trusted with an update. Trusted: that 2 clients or more" in summary["statement"]
    assert "The server is trusted" not in summary["statement"]
    assert [line["clients"] for line in metrics_of(tmp_path / "run")] == [[], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": CLIENT, "federation__secure_aggregation": None}, "privacy.honest: clients share"),
        ({"privacy": CLIENT | {"unit": "example"}}, "privacy.honest: clients share"),
        ({"privacy": CLIENT | {"clip_norm": "auto"}}, "privacy.quantile"),
        ({"privacy": CLIENT | {"mechanism": "banded"}}, "privacy.mechanism: with"),
    ],
)
def test_shared_noise_that_cannot_be_is_refused(world, changes, said):
    config = config_of(world, **{"federation__secure_aggregation": SECURE} | changes)
    with pytest.raises(InputError, match=said):
        check_settings(RunConfig.from_dict(config))


def test_noised_sums_of_a_private_start_go_through_it(world, tmp_path):
    privacy = {"unit": "example", "epsilon": 4.0, "delta": 1e-3, "clip_norm": 1.0}
    init = {"kind": "gradient", "private": True, "samples": 48, "head_warmup": None}
    changes = {"federation__rounds": 1, "privacy": privacy, "method__init": init}
    config = config_of(world, federation__secure_aggregation=SECURE, **changes)
    result = run(RunConfig.from_dict(config), tmp_path / "run")
    lines = {(e.what, e.direction): e for e in load_checkpoint(tmp_path / "run/checkpoint").traffic}
    assert lines["noised sums of clipped gradients", "up"].clients == 3
    assert result.summary["privacy"]["epsilon"] <= 4
    assert metrics_of(tmp_path / "run")[1]["train_loss"] is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["federation.secure_aggregation.threshold=5"],
            "expected at most 3 (the clients of a round), found 5",
        ),
        (["method.name=flora"], "needs more of its clients' updates than their sum"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(world, tmp_path, monkeypatch, capsys, settings, said):
    file = write_config(tmp_path / "run.yaml", config_of(world, federation__secure_aggregation=SECURE))
    changes = [part for setting in settings for part in ("-s", setting)]
    assert main_status(monkeypatch, "run", file, *changes, "--out", tmp_path / "run") == 2
    told = " ".join("".join(capsys.readouterr()).split())
    assert said in told
    assert "Traceback" not in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
