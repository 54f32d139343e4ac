"""Runs whose bases are replaced when the core has stopped moving: when, what is kept, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from run_helpers import (
    adapter_bytes,
    changed,
    classification_config,
    metrics_of,
    parts_of,
    timeless,
    tiny_bert,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.federation import wire
from fedsb.federation.start.refresh import FOLDED
from fedsb.report import tables
from fedsb.report.load import load_run
from fedsb.runner import clients, rounds
from fedsb.runner import loop as runner
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.prepare_data import check_can_deploy

pytestmark = pytest.mark.usefixtures("no_page")

WHEN = {"share": 0.1, "least_rounds": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saturation")
    config = tiny_bert(folder / "bert") / "config.json"
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # whose masks differ in a stack
    config.write_text(json.dumps(json.loads(config.read_text()) | none))
    write_data(folder / "data", train=24, test=6)
    return folder


def config_of(world, **changes):
    few = {
        "method__rank": 2,
        "method__init": {"samples": 12, "head_warmup": None, "step_size": 0.001},
        "method__refresh_when": WHEN,
        "federation__clients": 2,
        "federation__rounds": 5,
        "evaluation__every": 5,
    }
    return changed(classification_config(world / "bert", world / "data"), **few | changes)


def played(config, folder, **options):
    run(RunConfig.from_dict(config), folder, **options)
    return folder


def ledger_of(folder):
    return load_checkpoint(folder / "checkpoint").traffic


def refreshed_after(folder):
    return [entry.round for entry in ledger_of(folder) if entry.what == FOLDED]


@pytest.fixture
def still(monkeypatch):
    """Rounds in which clients hardly move, though the server counts on the config's learning rate."""
    numbers, real = set(), clients.client_update

    def update(broadcast, local_model, examples, training, **more):
        if wire.header_of(broadcast).round in numbers:
            training = replace(training, learning_rate=training.learning_rate / 1000)
        return real(broadcast, local_model, examples, training, **more)

    monkeypatch.setattr(clients, "client_update", update)
    return numbers


# ---------------------------------------------------------------- when


def test_bases_are_replaced_after_the_round_in_which_the_core_stood_still(world, tmp_path, still):
    """As a refresh by number replaces them there."""
    still.update({3})
    folder = played(config_of(world), tmp_path / "run")
    assert refreshed_after(folder) == [3]
    changes = [line["core_change"] for line in metrics_of(folder)[1:]]
    assert changes[2] < 0.01 * max(changes[:2])
    assert min(changes[3:]) > 10 * changes[2]  # and the new core moves
    shown = tables.initialization(load_run(folder))
    assert "new bases after rounds" in shown
    assert ">3<" in shown
    by_number = config_of(world, method__refresh_when=None, method__refresh_every=3)
    by_number = played(by_number, tmp_path / "by number")
    assert adapter_bytes(folder) == adapter_bytes(by_number)
    assert ledger_of(folder) == ledger_of(by_number)
    assert "core_change" not in metrics_of(by_number)[1]


@pytest.mark.parametrize(
    ("numbers", "when"),
    [
        (set(), WHEN),
        ({5}, WHEN),  # the last round
        ({2}, {"share": 0.1, "least_rounds": 3}),
    ],
    ids=["it keeps moving", "in the last round", "too early"],
)
def test_bases_stay(world, tmp_path, still, numbers, when):
    still.update(numbers)
    assert refreshed_after(played(config_of(world, method__refresh_when=when), tmp_path / "run")) == []


def test_largest_and_least_count_from_the_last_refresh(world, tmp_path, still):
    """The rounds after the first refresh are all slow: none is slow beside the others over the same bases."""
    still.update({2, 3, 4, 5})
    assert refreshed_after(played(config_of(world), tmp_path / "run")) == [2]


def test_the_change_is_per_learning_rate_of_those_in_the_average(world, tmp_path, monkeypatch):
    """A schedule that falls to nothing is no core that stands still; by hand from the cores themselves."""
    config = config_of(
        world,
        method__refresh_when={"share": 0.5, "least_rounds": 2},
        federation__partition={"kind": "dirichlet", "alpha": 1.0, "min_size": 4},
        federation__clients=3,
        federation__clients_per_round=2,
        training__schedule="linear",
        training__batch_size=2,
    )
    vectors, real = [], runner.play_round

    def watched(session, saved, number, chosen):
        before = session.local_model.exchange.down(2).unflatten(saved.state.vector)
        record = real(session, saved, number, chosen)
        vectors.append((before, session.local_model.exchange.down(2).unflatten(saved.state.vector)))
        return record

    monkeypatch.setattr(runner, "play_round", watched)
    folder = played(config, tmp_path / "run")
    assert refreshed_after(folder) == []
    sizes = [len(part) for part in parts_of(folder)]
    assert len(set(sizes)) > 1
    for (before, after), line in zip(vectors, metrics_of(folder)[1:], strict=True):
        moved = sum(float(((after[n] - before[n]) ** 2).sum()) for n in before if n.endswith(".R")) ** 0.5
        summed, weight = 0.0, 0
        for client in line["clients"]:
            steps = -(-sizes[client] // 2)
            first = (line["round"] - 1) * steps
            rates = [0.02 * (1 - step / (5 * steps)) for step in range(first, first + steps)]
            summed, weight = summed + sizes[client] * sum(rates), weight + sizes[client]
        assert line["core_change"] == pytest.approx(moved * weight / summed, rel=1e-5)


def test_clients_in_one_pass_go_on_over_the_new_bases(world, tmp_path):
    vectors = []
    for kind in ("sequential", "stacked"):
        changes = {"method__refresh_when": {"share": 0.999, "least_rounds": 1}, "federation__rounds": 4}
        config = config_of(world, **changes, federation__engine={"kind": kind}, training__optimizer="sgd")
        folder = played(config, tmp_path / kind)
        assert refreshed_after(folder)
        vectors.append(load_checkpoint(folder / "checkpoint").state.vector)
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- stopped and resumed


class Killed(BaseException):
    """As good as SIGKILL here."""


def test_a_run_killed_between_rounds_and_in_a_refresh_goes_on_to_the_same_bits(
    world, tmp_path, still, monkeypatch
):
    still.update({3})
    config = config_of(world)
    whole, folder = played(config, tmp_path / "whole"), tmp_path / "killed"
    play, refresh = runner.play_round, rounds.refresh

    def dying_before(number):
        def dying(session, saved, at, chosen):
            if at == number:
                raise Killed
            return play(session, saved, at, chosen)

        return runner, "play_round", dying

    def dying_inside(local_model, state, *args, **kwargs):
        refresh(local_model, state, *args, **kwargs)
        raise Killed

    for place in (dying_before(2), dying_before(3), (rounds, "refresh", dying_inside), dying_before(5)):
        with monkeypatch.context() as patch:
            patch.setattr(*place)
            with pytest.raises(Killed):
                played(config, folder, resume=folder.exists())
    played(config, folder, resume=True)
    assert refreshed_after(folder) == [3]
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert timeless(folder) == timeless(whole)
    assert ledger_of(folder) == ledger_of(whole)


def test_more_rounds_make_up_for_the_refresh_that_the_last_one_left_out(world, tmp_path, still):
    still.update({3})
    shorter, longer = (config_of(world, federation__rounds=rounds, evaluation__every=1) for rounds in (3, 4))
    whole = played(longer, tmp_path / "whole")
    folder = played(shorter, tmp_path / "run")
    assert refreshed_after(folder) == []
    played(longer, folder, resume=True)
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert timeless(folder) == timeless(whole)


# ---------------------------------------------------------------- what is refused

DATA_FREE = {"kind": "weights", "head_warmup": None}
PRIVATE = {"privacy": {"epsilon": 8.0, "unit": "example"}, "method__init": DATA_FREE}
REFUSED = {
    "a period too": ({"method__refresh_every": 2}, "leave one of the two out"),
    "a method without bases": ({"method__name": "fedit"}, "only fed-sb, lora-xs can start bases again"),
    "a method with a rule of its own": ({"method__name": "fedsvd"}, "only fed-sb, lora-xs"),
    "privacy": (PRIVATE, "noise alone keeps the core moving"),
    "secure sums": ({"federation__secure_aggregation": {}}, "different messages"),
    "a server's momentum": ({"federation__server": {}}, "momentum is over bases that"),
    "control variates": (
        {"federation__control_variates": True, "training__optimizer": "sgd"},
        "federation.control_variates: not with",
    ),
    "kept moments": ({"training__moments": "kept"}, "training.moments: kept: not with"),
    "averaged moments": ({"training__moments": "averaged"}, "training.moments: averaged: not with"),
    "personal cores": ({"method__personal": True}, "over the first bases"),
    "mixed ranks": ({"federation__client_ranks": [2, 1]}, "leave one of the two out"),
    "processes": ({"federation__processes": 2}, "clients train in one process"),
    "4 bits": ({"model__load_in_4bit": True}, "4 bits cannot hold"),
    "baselines": (
        {"evaluation__at_clients": True, "evaluation__baselines": ["local"], "data__client_test": 0.2},
        "evaluation.baselines: not with",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_go_with(world, case):
    changes, said = REFUSED[case]
    with pytest.raises(InputError) as refused:
        check_settings(RunConfig.from_dict(config_of(world, **changes)))
    lines = [line for line in str(refused.value).splitlines() if "method.refresh_when" in line]
    assert any(said in line for line in lines), refused.value


@pytest.mark.parametrize(("share", "least"), [(0, 2), (1, 2), (0.5, 0)])
def test_a_share_is_between_0_and_1_and_a_round_is_played(world, share, least):
    config = config_of(world, method__refresh_when={"share": share, "least_rounds": least})
    with pytest.raises(InputError, match=r"method.refresh_when"):
        RunConfig.from_dict(config)


def test_not_over_the_network(world):
    config = config_of(world, task__labels=["pos", "neg", "flat"])
    with pytest.raises(InputError, match=r"^method\.refresh_when: not over the network yet"):
        check_can_deploy(RunConfig.from_dict(config))


def test_noise_that_later_noise_takes_back_needs_bases_that_stay(world):
    private = {"epsilon": 8.0, "unit": "client", "mechanism": "banded", "delta": 0.01}
    config = config_of(
        world,
        method__refresh_when=None,
        method__refresh_every=2,
        method__init=DATA_FREE,
        privacy=private,
    )
    with pytest.raises(InputError, match=r"banded: later noise .* bases method\.refresh_every replaces"):
        check_settings(RunConfig.from_dict(config))
