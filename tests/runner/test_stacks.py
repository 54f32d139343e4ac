"""Runs whose clients train in one pass: as one after another, the same when resumed, and said where not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from run_helpers import (
    adapter_bytes,
    classification_config,
    main_status,
    metrics_of,
    timeless,
    tiny_bert,
    write_config,
    write_data,
)
from safetensors.torch import load_file

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.federation.training import ClientFailed
from fedsb.privacy.account import Guard
from fedsb.report.progress import Silent
from fedsb.runner import stacks
from fedsb.runner.arguments import most_in_one_pass, why_not_stacked
from fedsb.runner.clients import LocalClient
from fedsb.runner.memory import Memory, check_memory
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import memory_of
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.stacks import counts_to_time, fastest, most_that_fit

STACKED, AUTO = {"kind": "stacked", "clients": 3}, {"kind": "auto", "clients": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks")
    model = tiny_bert(folder / "bert") / "config.json"
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model.write_text(json.dumps(json.loads(model.read_text()) | drops))
    write_data(folder / "data", train=40, test=6)
    return folder


ASKED = {"model__check_memory": True}


def config_of(world: Path, **changes: Any) -> RunConfig:
    settings = {
        "federation__clients": 5,
        "federation__clients_per_round": 4,
        "federation__partition": {"kind": "dirichlet", "alpha": 1.0, "min_size": 2},
        "federation__rounds": 2,
        "federation__engine": STACKED,
        "training__batch_size": 4,
        "evaluation__every": None,
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return RunConfig.from_dict(classification_config(world / "bert", world / "data", **settings | changes))


class Lines(Silent):
    """Keeps what is said, and dies as a round begins."""

    def __init__(self, dies_in: int = 0) -> None:
        self.said: list[str] = []
        self.ended: list[int] = []
        self.dies_in = dies_in

    def stage(self, text: str) -> None:
        self.said.append(text)

    def client_ends(self, client: int, problem: str | None) -> None:
        self.ended.append(client)

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        if number == self.dies_in:
            raise KeyboardInterrupt

    def of_engine(self) -> list[str]:
        return [line for line in self.said if line.startswith("federation.engine")]


@pytest.fixture(scope="module")
def stacked(world: Path) -> Path:
    lines = Lines()
    run(config_of(world), world / "stacked", progress=lines)
    assert lines.of_engine() == ["federation.engine: up to 3 clients train in one pass"]
    assert len(lines.ended) == 2 * 4
    return world / "stacked"


def test_a_stacked_run_is_the_sequential_one_up_to_rounding(world: Path, stacked: Path) -> None:
    run(config_of(world, federation__engine=...), world / "sequential")
    for one, other in zip(metrics_of(world / "sequential")[1:], metrics_of(stacked)[1:], strict=True):
        assert other["clients"] == one["clients"]
        assert other["upload_bytes"] == one["upload_bytes"]
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    tensors = [
        load_file(f / "adapter" / "adapter_model.safetensors") for f in (world / "sequential", stacked)
    ]
    for name, value in tensors[0].items():
        assert (tensors[1][name] - value).norm() <= 1e-3 * value.norm(), name


def test_a_killed_run_goes_on_with_the_same_bits(world: Path, stacked: Path) -> None:
    folder = world / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(config_of(world), folder, progress=Lines(dies_in=2))
    run(config_of(world), folder, resume=True)
    assert adapter_bytes(folder) == adapter_bytes(stacked)
    assert timeless(folder) == timeless(stacked)


def test_a_choice_by_time_is_kept_and_taken_again(
    world: Path, stacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {1: 1.0, 3: 0.5}
    timed: list[int] = []

    def seconds(asked: Sequence[Any], *_: Any) -> float:
        timed.append(len(asked))
        return times[len(asked)]

    monkeypatch.setattr(stacks, "seconds_per_client", seconds)
    folder, auto = world / "auto", config_of(world, federation__engine=AUTO)
    with pytest.raises(KeyboardInterrupt):
        run(auto, folder, progress=Lines(dies_in=2))
    assert json.loads((folder / "engine.json").read_text())["clients"] == 3
    times[3] = 2.0  # now it would be slower, and is not asked
    lines = Lines()
    run(auto, folder, resume=True, progress=lines)
    assert timed == [1, 3]
    assert lines.of_engine() == ["federation.engine: up to 3 clients train in one pass"]
    assert adapter_bytes(folder) == adapter_bytes(stacked)


def test_stacks_are_taken_where_they_are_worth_it() -> None:
    assert counts_to_time(16) == [1, 16, 8, 4]
    assert counts_to_time(3) == [1, 3]
    assert fastest({1: 1.0, 16: 0.5, 8: 0.4}) == 8
    assert fastest({1: 1.0, 16: 0.97}) == 1


# ---------------------------------------------------------------- what is not stacked


EXAMPLE = {"epsilon": 3}
REASONS = {
    "privacy.owner": {"privacy": EXAMPLE | {"owner": "site"}},
    "privacy.unit example in 16 bits": {"privacy": EXAMPLE, "training__autocast": "bfloat16"},
    "privacy.unit example: the clock": {"privacy": EXAMPLE, "federation__engine": AUTO},
    "federation.client_timeout_seconds": {"federation__client_timeout_seconds": 60},
    "method.experts": {"method__name": "fed-mixer", "method__experts": {"hard_rounds": 2}},
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_stacked_has_a_reason(world: Path, reason: str) -> None:
    config = config_of(world, **REASONS[reason])
    assert (why_not_stacked(config) or "").startswith(reason)
    assert most_in_one_pass(config) == 1
    assert why_not_stacked(config_of(world)) is None
    assert most_in_one_pass(config_of(world)) == 3
    assert most_in_one_pass(config_of(world, federation__engine={"kind": "stacked"})) == 4


def test_private_clients_stack_and_who_has_no_room_does_not_train(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each release of a stack is charged to its client, before it leaves."""
    check, refused = PrivateRun.check_room, list[int]()
    charged: list[tuple[int | None, int]] = []
    charge = Guard.charge

    def full(self: PrivateRun, client: int, number: int) -> None:
        check(self, client, number)
        if number == 2 and not refused:
            refused.append(client)
            raise ClientFailed(self.used_up)

    def counted(self: Guard, client: int | None, phase: Any, number: int, mechanism: Any) -> None:
        charge(self, client, phase, number, mechanism)
        charged.append((client, number))

    monkeypatch.setattr(PrivateRun, "check_room", full)
    monkeypatch.setattr(Guard, "charge", counted)
    changes = {"privacy": EXAMPLE, "federation__clients": 3, "federation__clients_per_round": None}
    lines = Lines()
    run(config_of(world, **changes), world / "private", progress=lines)
    assert lines.of_engine() == ["federation.engine: up to 3 clients train in one pass"]
    first, second = metrics_of(world / "private")[1:]
    assert (first["clients"], first["rejected"], first["train_loss"]) == ([0, 1, 2], [], None)
    assert [entry["client"] for entry in second["rejected"]] == refused
    assert "is used up" in second["rejected"][0]["reason"]
    able = [client for client in range(3) if client not in refused]
    assert second["clients"] == able
    assert sorted(charged) == sorted([(c, 1) for c in range(3)] + [(c, 2) for c in able])
    assert 0 < first["epsilon"] < second["epsilon"] <= 3


def test_a_run_that_falls_back_says_so(world: Path) -> None:
    changes = {"federation__client_timeout_seconds": 60, "federation__rounds": 1}
    lines = Lines()
    run(config_of(world, **changes), world / "fallen-back", progress=lines)
    assert lines.of_engine() == [
        "federation.engine: one client after another (federation.client_timeout_seconds: the time of one "
        "client is not known)"
    ]


def test_an_audit_is_not_stacked_and_a_cohort_may_be_empty() -> None:
    lines, asked = Lines(), list[int]()

    def one_by_one(cohort: Sequence[int], message_to: Any) -> list[Any]:
        asked.extend(cohort)
        return []

    client = SimpleNamespace(client=0, private=SimpleNamespace(canaries={0: object()}))
    ask = stacks._Stacks(lambda _: cast("LocalClient", client), one_by_one, lines, most=4).ask
    assert list(ask([], lambda _: b"")) == []
    assert (asked, lines.said) == ([], [])
    list(ask([2, 0], lambda _: b""))
    assert asked == [2, 0]
    assert lines.of_engine() == [
        "federation.engine: one client after another (an audit's canaries are in each client's steps)"
    ]


def test_a_model_that_mixes_rows_falls_back_in_the_first_round(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "unlike_alone", lambda *_: "the model mixes rows")
    lines = Lines()
    run(config_of(world, federation__rounds=1), world / "mixing", progress=lines)
    assert lines.of_engine() == ["federation.engine: one client after another (the model mixes rows)"]


def test_whatever_breaks_in_a_stack_fails_its_clients_alone(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clients in stacks of three: the last is none."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(stacks, "stacked_updates", broken)
    run(config_of(world, federation__rounds=1), world / "broken")
    line = metrics_of(world / "broken")[1]
    assert len(line["clients"]) == 1
    assert {r["reason"] for r in line["rejected"]} == {"RuntimeError: out of memory"}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kind": "stacked", "clients": 0}, r"federation.engine.clients: .*greater than 0, found 0"),
        ({"kind": "sequential", "clients": 2}, r"federation.engine.clients: unknown key"),
        ({"kind": "stakced"}, r"federation.engine: .*'stacked'"),
    ],
)
def test_wrong_engines_are_named(world: Path, engine: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(world, federation__engine=engine)


def test_processes_and_stacks_are_one_too_many(world: Path) -> None:
    with pytest.raises(InputError, match=r"federation\.engine: processes train one client after another"):
        check_settings(config_of(world, federation__processes=2))


def test_a_stack_that_does_not_fit_is_refused_before_anything_is_loaded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(
        world, federation__engine={"kind": "stacked", "clients": 4}, training__batch_size=64, **ASKED
    )
    data = prepare_data(config)
    alone = memory_of(config_of(world, federation__engine=..., training__batch_size=64, **ASKED), data)
    assert alone is not None
    monkeypatch.setattr("fedsb.runner.prepare_model.available_bytes", lambda *_, **__: 2 * alone.total)
    file = write_config(tmp_path / "config.yaml", config.model_dump(mode="json"))
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "with 4 clients in one pass (federation.engine)" in error
    assert "federation.engine: {kind: stacked, clients: 2}" in error


def test_the_estimate_grows_with_the_stack_and_auto_takes_what_fits(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        world, federation__engine={"kind": "auto", "clients": 4}, training__batch_size=64, **ASKED
    )
    data = prepare_data(config)

    @cache
    def of(clients: int) -> Memory:
        memory = memory_of(
            config_of(
                world,
                federation__engine={"kind": "stacked", "clients": clients},
                training__batch_size=64,
                **ASKED,
            ),
            data,
        )
        assert memory is not None
        return memory

    assert of(4).activations > 1.9 * of(2).activations > 3.6 * of(1).activations
    assert of(4).training > of(1).training
    assert of(4).weights == of(1).weights
    base = of(1).weights + of(1).factors
    for fits, most in ((of(4).total, 4), (of(4).total - 1, 2), (of(1).total, 1)):
        monkeypatch.setattr(stacks, "free_memory", lambda _, free=fits: free - base)
        assert most_that_fit(config, data) == most
    check_memory(of(4), of(4).total, config)


@pytest.mark.parametrize(
    "content", ["{}", '{"clients": "two"}', '{"clients": 0}', '{"clients": 100000}', "["]
)
def test_a_choice_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "engine.json"
    assert stacks._kept_choice(file, 4) is None
    file.write_text(content)
    with pytest.raises(InputError, match=r"engine\.json"):
        stacks._kept_choice(file, 4)
