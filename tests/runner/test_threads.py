"""training.threads: auto is one for a small base, else the cores that are free; the run says and keeps it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_helpers import classification_config, tiny_bert, write_data
from torch import nn

from fedsb import RunConfig, run
from fedsb.common import cores
from fedsb.common.cores import Use
from fedsb.errors import InputError
from fedsb.report.progress import Silent
from fedsb.runner import threads
from fedsb.runner.continued import as_chosen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    tiny_bert(folder / "bert"), write_data(folder / "data", train=12, test=6)
    return folder


def config_of(world: Path, **changes: object) -> RunConfig:
    few = {"federation__clients": 2, "federation__rounds": 1}
    return RunConfig.from_dict(classification_config(world / "bert", world / "data", **few | changes))


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "many"])
def test_what_is_no_number_of_threads_is_refused(world: Path, number: object) -> None:
    with pytest.raises(InputError, match=r"training\.threads: expected a whole number above 0, or auto"):
        config_of(world, training__threads=number)


class Free:
    """Processor time after which so many cores are free."""

    def __init__(self, number: int) -> None:
        self.number = number

    def free_cores(self) -> int:
        return self.number


LARGE = nn.Embedding(2, threads.SMALL)


@pytest.mark.parametrize(
    ("changes", "free", "limit", "number"),
    [
        ({}, 6, "", 6),
        ({"federation__processes": 4}, 6, "", 1),
        ({"federation__processes": 2}, 6, "", 3),
        ({}, 6, "4", 4),
        ({}, 6, "8", 6),
        ({"training__threads": 7}, 6, "4", 7),
    ],
)
def test_a_large_base_gets_the_cores_that_are_free(
    world: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, free: int, limit: str, number: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    config = config_of(world, **changes)
    assert threads.choose_threads(config, LARGE, Free(free))[0] == number  # type: ignore[arg-type]
    small = threads.choose_threads(config, nn.Linear(2, 2), Free(free))[0]  # type: ignore[arg-type]
    assert small == changes.get("training__threads", 1)


def test_cores_that_others_use_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight cores others used 3.6 in the last ten seconds, and this process two."""
    now = {"everybody": 156.0, "own": 25.0, "at": 110.0}
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "_busy_seconds", lambda: now["everybody"])
    monkeypatch.setattr(os, "times", lambda: (now["own"], 0.0, 0.0, 0.0, 99.0))
    monkeypatch.setattr(cores.time, "monotonic", lambda: now["at"])
    before = Use(everybody=100.0, own=5.0, at=100.0)
    assert before.free_cores() == 4
    now["everybody"] = 300.0  # a machine with jobs waiting
    assert before.free_cores() == 1
    now["everybody"] = 120.0  # nobody else
    assert before.free_cores() == 6


def test_a_quota_of_any_group_around_the_process_limits_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "QUOTAS", tmp_path)
    monkeypatch.setattr(cores, "OWN_GROUP", tmp_path / "own")
    assert cores.usable_cores() == 8
    (tmp_path / "slice" / "job").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/slice/job\n")
    (tmp_path / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    assert cores.usable_cores() == 8
    (tmp_path / "slice" / "cpu.max").write_text("250000 100000\n")
    assert cores.usable_cores() == 3
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.usable_cores() == 1


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.during: set[int] = set()

    def stage(self, text: str) -> None:
        self.lines.append(text)

    def step(self, num_examples: int) -> None:
        self.during.add(torch.get_num_threads())


def test_a_run_says_and_keeps_its_threads_and_gives_the_caller_s_back(world: Path, tmp_path: Path) -> None:
    lines = Lines()
    torch.set_num_threads(2)
    try:
        run(config_of(world), tmp_path / "run", progress=lines)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert lines.during == {1}
    assert "training.threads: 1, since the model is small" in lines.lines
    kept = RunConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert kept.training.threads == 1
    assert as_chosen(kept, config_of(world)).training.threads == 1
    assert as_chosen(kept, config_of(world, training__threads=2)).training.threads == 2


def test_the_command_s_waiting_threads_sleep() -> None:
    code = (
        "import os, sys; from fedsb.cli import app; assert 'torch' not in sys.modules; "
        "app.app = lambda: print(os.environ['OMP_WAIT_POLICY']); app.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for set_, said in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | set_, capture_output=True, text=True
        )
        assert done.stdout.strip() == said, done.stderr
