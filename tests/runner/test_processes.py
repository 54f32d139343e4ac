"""Clients in processes of their own: the same run to the digit, and a word when a process breaks."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_helpers import adapter_bytes, classification_config, metrics_of, timeless, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.common.child import read_frame, write_frame
from fedsb.config.checks import check_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation.server import Failed
from fedsb.report.progress import Silent
from fedsb.runner.processes import pool as pool_of
from fedsb.runner.processes.worker import placed

POOL = sys.modules["fedsb.runner.processes.pool"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_bert(folder / "bert"), write_data(folder / "data", train=36, test=12)
    return folder


def config_of(world: Path, **changes: Any) -> RunConfig:
    settings = {"federation__clients": 5, "federation__clients_per_round": 3, "federation__rounds": 3}
    return RunConfig.from_dict(classification_config(world / "bert", world / "data", **settings | changes))


def changing_base(world: Path, processes: int) -> RunConfig:
    """FLoRA: what a client must be told depends on what its process has seen."""
    return config_of(world, method__name="flora", federation__processes=processes)


def test_a_run_in_two_processes_is_the_run_in_one(world: Path, tmp_path: Path) -> None:
    run(changing_base(world, 1), tmp_path / "one")
    run(changing_base(world, 2), tmp_path / "two")
    assert timeless(tmp_path / "one") == timeless(tmp_path / "two")
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")


def test_a_worker_that_cannot_load_ends_the_run_with_its_reason(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_checkpoint(folder: Path, saved: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("fedsb.runner.loop.save_checkpoint", lose_the_checkpoint)
    with pytest.raises(RunFailed, match=r"a worker process found no checkpoint"):
        run(config_of(world, federation__processes=2), tmp_path / "run")


# ---------------------------------------------------------------- workers that die, hang, or never start


class Kill(Silent):
    """Kills a worker as the second round begins."""

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        if number == 2:
            os.kill(min(workers()), signal.SIGKILL)


def workers() -> list[int]:
    children = psutil.Process().children()
    return [child.pid for child in children if "fedsb.runner.processes.worker" in child.cmdline()]


def test_a_killed_worker_costs_one_client_its_round_and_another_takes_its_place(
    world: Path, tmp_path: Path
) -> None:
    """FLoRA: the new one must have the base weights of the last round, or it could answer nothing."""
    few = {"federation__clients": 4, "federation__clients_per_round": 4, "federation__processes": 2}
    run(config_of(world, method__name="flora", **few), tmp_path / "run", progress=Kill())
    lines = metrics_of(tmp_path / "run")[1:]
    assert [len(line["clients"]) for line in lines] == [4, 3, 4]
    assert [r["reason"] for line in lines for r in line["rejected"]] == [
        "its worker process ended with status -9"
    ]
    assert not workers()


def script(folder: Path, text: str) -> str:
    """A program in Python's place."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_clients_of_workers_that_hang_fail_and_the_processes_are_ended(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read nothing either, however large the message is."""
    monkeypatch.setattr(sys, "executable", script(tmp_path, "exec sleep 600"))
    monkeypatch.setattr(POOL, "LOAD_SECONDS", 0.1)
    config = config_of(world, federation__processes=2, federation__deadline_seconds=0.1)
    with pool_of(config, tmp_path, Silent()) as ask_clients:
        assert ask_clients is not None
        outcomes = list(ask_clients([0, 1, 2], lambda client: bytes(1 << 20)))
    assert [outcome.client for outcome in outcomes] == [0, 1, 2]
    assert all(isinstance(o, Failed) and "did not answer in time" in o.reason for o in outcomes)
    assert not psutil.Process().children()


def test_workers_that_all_die_end_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path, "echo no memory >&2; exit 3"))
    with pool_of(config_of(world, federation__processes=2), tmp_path, Silent()) as ask_clients:
        assert ask_clients is not None
        with pytest.raises(RunFailed, match=r"process ended with status 3 \(no memory\); the last finished"):
            list(ask_clients(range(12), lambda client: b"x"))


def test_what_a_worker_may_take_has_an_end_by_default(world: Path) -> None:
    assert config_of(world).federation.deadline_seconds == 3600
    assert POOL.seconds_of(config_of(world)) == 3600
    assert POOL.seconds_of(config_of(world, federation__client_timeout_seconds=20)) == 20 + POOL.GRACE_SECONDS


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("privacy", {"privacy": {"epsilon": 3}, "method__init": {"kind": "weights"}}),
        ("method.refresh_every", {"method__refresh_every": 2}),
        ("model.device_map", {"model__device_map": "auto"}),
    ],
)
def test_what_needs_one_process_is_refused(world: Path, key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"federation\.processes: with {key}"):
        check_settings(config_of(world, federation__processes=2, **changes))


def test_processes_take_the_gpus_in_turn(world: Path) -> None:
    config = config_of(world)
    assert [placed(config, n, 2).model.device for n in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert placed(config, 1, 0).model.device == "auto"
    named = config_of(world, model__device="cpu")
    assert placed(named, 1, 2).model.device == "cpu"


def test_frames_come_back_and_a_cut_one_is_the_end() -> None:
    stream = io.BytesIO()
    write_frame(stream, {"client": 3}, b"\x00\xff" * 5)
    write_frame(stream, {"reason": "ä"})
    whole = stream.getvalue()
    stream.seek(0)
    assert read_frame(stream) == ({"client": 3}, b"\x00\xff" * 5)
    assert read_frame(stream) == ({"reason": "ä"}, b"")
    assert read_frame(stream) is None
    assert not [cut for cut in range(35) if read_frame(io.BytesIO(whole[:cut])) is not None]
