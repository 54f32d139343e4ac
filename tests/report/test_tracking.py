"""Trackers get every number of metrics.jsonl once, and a tracker that fails harms nobody."""

import json
import math
import socket
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
from run_helpers import classification_config, main_status, metrics_of, tiny_bert, write_config, write_data

from fedsb import RunConfig
from fedsb.errors import InputError
from fedsb.report import tracking
from fedsb.report.progress import Watchers
from fedsb.report.tracking import TRACKERS, check_tracking, trackers
from fedsb.report.tracking.tracked import Opening, Tracked, numbers_of
from fedsb.runner import loop
from fedsb.runner.folder import check_free

LINE = {
    "round": 2,
    "train_loss": 0.5,
    "eval": {"accuracy": 0.9, "loss": math.inf},
    "upload_bytes": 100,
    "clients": [0, 2],
    "rejected": [{"client": 1, "reason": "late"}],
    "epsilon": None,
}


def line(number, **changes):
    return LINE | {"round": number} | changes


@dataclass
class Fake:
    """A tracker that remembers; `fails` from that step on."""

    opening: Opening
    given: list = field(default_factory=list)
    fails: int = 99
    closed: list = field(default_factory=list)

    def log(self, numbers, step):
        if step >= self.fails:
            raise ConnectionError("the server is gone")
        self.given += [(step, name) for name in numbers]

    def close(self, *, finished):
        self.closed.append(finished)


@pytest.fixture
def fakes(monkeypatch):
    """Every tracker is a fake, in order of opening."""
    made = []

    def open_fake(opening):
        made.append(Fake(opening))
        return made[-1]

    monkeypatch.setattr(tracking, "TRACKERS", dict.fromkeys(TRACKERS, open_fake))
    monkeypatch.setattr(tracking, "find_spec", lambda name: SimpleNamespace())
    return made


# ---------------------------------------------------------------- what is given


def test_numbers_are_flat_and_finite():
    assert numbers_of(LINE) == {
        "train_loss": 0.5, "eval/accuracy": 0.9, "upload_bytes": 100.0, "clients": 2.0, "rejected": 1.0,
    }  # fmt: skip


def tracked(folder, made, **fake):
    def open_fake(opening):
        made.append(Fake(opening, **fake))
        return made[-1]

    return Tracked(open_fake, folder / "run" / "tracking" / "fake", {"seed": 0})


def test_every_number_is_given_once_also_by_a_run_that_goes_on(tmp_path):
    made, lines = [], [line(n) for n in range(4)]
    first = tracked(tmp_path, made)
    first.follow(lines[:1])
    first.follow(lines[:2])
    again = tracked(tmp_path, made)
    again.follow(lines[:3])
    again.follow(lines)
    given = made[0].given + made[1].given
    assert sorted(given) == sorted((n, name) for n in range(4) for name in numbers_of(LINE))
    one, other = (fake.opening for fake in made)
    assert one.id == other.id
    assert (one.fresh, other.fresh) == (True, False)
    assert one.name == "run"


def test_a_number_that_comes_late_to_its_round_is_given_alone(tmp_path):
    """A run that stops early scores its last state after the round was told."""
    made = []
    watcher = tracked(tmp_path, made)
    watcher.follow([line(1, eval={})])
    watcher.follow([line(1, eval={"accuracy": 0.7})])
    assert made[0].given[-1] == (1, "eval/accuracy")
    assert len(made[0].given) == len(set(made[0].given))


def test_what_was_noted_and_then_failed_is_not_given_again(tmp_path):
    made = []
    with pytest.raises(ConnectionError):
        tracked(tmp_path, made, fails=1).follow([line(0), line(1)])
    tracked(tmp_path, made).follow([line(0), line(1), line(2)])
    assert {step for step, _ in made[1].given} == {2}


# ---------------------------------------------------------------- one that fails


def test_a_failing_watcher_is_named_once_and_the_others_go_on(tmp_path):
    made, said = [], []
    watchers = {"good": tracked(tmp_path / "a", made), "bad": tracked(tmp_path / "b", made, fails=1)}
    with Watchers(watchers, said.append) as all_of_them:
        for n in range(4):
            all_of_them.follow([line(i) for i in range(n + 1)])
    assert said == ["bad failed (ConnectionError: the server is gone); the run continues without it"]
    assert {step for step, _ in made[0].given} == {0, 1, 2, 3}
    assert made[0].closed == [True]


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path):
    def fails(opening):
        raise OSError("no place")

    said = []
    with Watchers({"it": Tracked(fails, tmp_path / "r" / "tracking" / "it", {})}, said.append) as watchers:
        watchers.follow([line(0)])
        watchers.follow([line(0), line(1)])
    assert said == ["it failed (OSError: no place); the run continues without it"]


def test_a_run_that_fails_is_closed_as_such(tmp_path):
    made = []

    def run():
        with Watchers({"it": tracked(tmp_path, made)}, print) as watchers:
            watchers.follow([line(0)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert made[0].closed == [False]


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracking")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=45, test=9)
    return folder


def config_of(world, **changes):
    few = {"federation__rounds": 2, "method__init": {"kind": "weights", "head_warmup": None}}
    return classification_config(world / "bert", world / "data", **few | changes)


def test_a_run_its_kill_and_its_resume_in_real_event_files(world, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra fedsb[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, real = RunConfig.from_dict(config_of(world, tracking="tensorboard")), loop.save_checkpoint

    def killed(folder, saved):
        if saved.state.round == 2:
            raise KeyboardInterrupt
        real(folder, saved)

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.run(config, tmp_path / "run")
    monkeypatch.setattr(loop, "save_checkpoint", real)
    loop.run(config, tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run/tracking/tensorboard"), purge_orphaned_data=False).Reload()
    for name in numbers_of(metrics_of(tmp_path / "run")[2]):
        wanted = [(m["round"], n[name]) for m in metrics_of(tmp_path / "run") if name in (n := numbers_of(m))]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in wanted], name
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6), name
    assert len(events.Tensors("config/text_summary")) == 1


def test_a_run_does_not_end_with_its_tracker(world, tmp_path, fakes, monkeypatch, capsys):
    def broken(opening):
        raise RuntimeError("database is locked")

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", broken)
    file = write_config(tmp_path / "c.yaml", config_of(world, tracking=["mlflow", "trackio"]))
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("mlflow failed (RuntimeError: database is locked); the run continues without it") == 1
    (trackio,) = fakes
    assert [step for step, name in trackio.given if name == "eval/accuracy"] == [0, 1, 2]
    assert trackio.opening.settings["method.rank"] == 4
    assert trackio.closed == [True]


def test_a_library_that_is_not_there_is_said_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    config = classification_config(tmp_path / "no model", tmp_path, tracking=["wandb"])
    file = write_config(tmp_path / "c.yaml", config)
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 2
    assert "tracking: wandb is not installed; pip install 'fedsb[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_and_none_is_the_default(tmp_path):
    config = classification_config(tmp_path, tmp_path)
    assert RunConfig.from_dict(config).tracking == []
    check_tracking([])
    assert list(trackers([], tmp_path, {})) == []
    with pytest.raises(InputError, match="tracking"):
        RunConfig.from_dict(config | {"tracking": ["tensorbord"]})


def test_a_run_may_go_on_with_other_trackers(tmp_path):
    config = classification_config(tmp_path, tmp_path)
    (tmp_path / "config.yaml").write_text(RunConfig.from_dict(config).to_yaml())
    check_free(tmp_path, RunConfig.from_dict(config | {"tracking": ["wandb"]}), resume=True)
    with pytest.raises(InputError, match="seed"):
        check_free(tmp_path, RunConfig.from_dict(config | {"seed": 1}), resume=True)


# ---------------------------------------------------------------- the adapters


def opening(folder, *, fresh=True):
    folder.mkdir(parents=True, exist_ok=True)
    return Opening(folder, "one", "abcd1234", fresh, {"seed": 0, "method.name": "fed-sb"})


@pytest.fixture
def calls(monkeypatch):
    """wandb and trackio as modules that only remember how they were called."""
    found = []

    class Run:
        def __getattr__(self, name):
            return lambda *args, **more: found.append((name, args, more))

    def init(*args, **more):
        found.append(("init", args, more))
        return Run()

    for name in ("wandb", "trackio"):
        module = ModuleType(name)
        module.init, module.Settings = init, lambda **more: more
        monkeypatch.setitem(sys.modules, name, module)
        for variable in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_DIR", "WANDB_ERROR_REPORTING"):
            monkeypatch.setenv(variable, "")
            monkeypatch.delenv(variable)
    return found


def test_wandb_is_offline_unless_asked(tmp_path, calls, monkeypatch):
    for wanted in (None, "online"):
        if wanted:
            monkeypatch.setenv("WANDB_MODE", wanted)
        run = TRACKERS["wandb"](opening(tmp_path))
        run.log({"eval/accuracy": 0.5}, 3)
        run.close(finished=False)
        (_, _, given), logged, finished = calls[-3:]
        assert given["mode"] == (wanted or "offline")
        assert (given["id"], given["resume"], given["dir"]) == ("abcd1234", "allow", str(tmp_path))
        assert logged == ("log", ({"eval/accuracy": 0.5},), {"step": 3})
        assert finished == ("finish", (), {"exit_code": 1})


def test_trackio_keeps_its_files_in_the_run_folder(tmp_path, calls):
    import os

    run = TRACKERS["trackio"](opening(tmp_path))
    run.log({"loss": 0.5}, 3)
    run.close(finished=True)
    (_, args, given), logged, finished = calls
    assert args == ("fedsb",)
    assert (given["name"], given["resume"]) == ("one-abcd1234", "allow")
    assert "space_id" not in given
    assert os.environ["TRACKIO_DIR"] == str(tmp_path)
    assert logged == ("log", ({"loss": 0.5},), {"step": 3})
    assert finished[0] == "finish"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra fedsb[mlflow]")
def test_mlflow_keeps_one_run_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = TRACKERS["mlflow"](opening(tmp_path))
    first.log({"eval/accuracy": 0.5, "train_loss": 2.0}, 0)
    first.close(finished=False)
    again = TRACKERS["mlflow"](opening(tmp_path, fresh=False))
    again.log({"eval/accuracy": 0.75}, 1)
    again.close(finished=True)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedsb")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.name"] == "fed-sb"
    history = client.get_metric_history(run.info.run_id, "eval/accuracy")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.5), (1, 0.75)]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="needs the extra fedsb[trackio]")
def test_trackio_keeps_one_run_locally(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    for step, fresh in ((0, True), (1, False)):
        run = TRACKERS["trackio"](opening(tmp_path, fresh=fresh))
        run.log({"accuracy": 0.5 + step / 4}, step)
        run.close(finished=True)
    found = [path.name for path in tmp_path.rglob("*.db")]
    assert found
    import sqlite3

    with sqlite3.connect(next(tmp_path.rglob("*.db"))) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(text)["accuracy"]) for step, text in rows] == [(0, 0.5), (1, 0.75)]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the extra fedsb[wandb]")
def test_wandb_writes_an_offline_run_without_any_network(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: asked.append(args) or [])
    run = TRACKERS["wandb"](opening(tmp_path))
    run.log({"accuracy": 0.5}, 0)
    run.close(finished=True)
    assert list(tmp_path.rglob("*.wandb"))
    assert not [name for name, *_ in asked if name not in ("localhost", "127.0.0.1")]
