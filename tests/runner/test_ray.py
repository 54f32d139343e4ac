"""Clients as tasks of Ray: the run in one process to the bit, with a worker killed; refusals."""

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from run_helpers import adapter_bytes, classification_config, metrics_of, timeless, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation.server import Arrived, Failed
from fedsb.report.progress import Silent
from fedsb.runner.processes import check_engine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    tiny_bert(folder / "bert"), write_data(folder / "data", train=24, test=6)
    return folder


def config_of(world: Path, **changes: Any) -> RunConfig:
    few = {"federation__clients": 4, "federation__rounds": 3}
    return RunConfig.from_dict(classification_config(world / "bert", world / "data", **few | changes))


RAY = {"federation__engine": {"kind": "ray", "workers": 2}}


def test_ray_that_is_not_installed_is_named_with_its_command(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "fedsb.runner.processes.engine.find_spec", lambda name: None if name == "ray" else found(name)
    )
    with pytest.raises(InputError, match=r"federation\.engine: ray: .* missing; pip install 'fedsb\[ray\]'"):
        run(config_of(world, **RAY), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_engine(config_of(world))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "ray"}, r"federation\.engine\.workers: this key is needed"),
        ({"kind": "ray", "workers": 0}, r"federation\.engine\.workers: .*greater than 0"),
        ({"kind": "ray", "workers": 2, "address": ""}, r"federation\.engine\.address: "),
        ({"kind": "rya", "workers": 2}, r"federation\.engine: .*'ray'"),
        ({"kind": "sequential", "workers": 2}, r"federation\.engine\.workers: unknown key"),
    ],
)
def test_an_engine_that_is_none_is_refused(world: Path, engine: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config_of(world, federation__engine=engine)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("privacy", {"privacy": {"epsilon": 3}, "method__init": {"kind": "weights"}}),
        ("method.refresh_every", {"method__refresh_every": 2}),
        ("federation.processes", {"federation__processes": 2}),
    ],
)
def test_what_needs_one_process_is_refused_with_ray(world: Path, key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"federation\.engine: with {key}|{key}: federation\.engine: ray"):
        check_settings(config_of(world, **RAY, **changes))


class Kill(Silent):
    """Kills one of Ray's workers as the second round begins."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def round_begins(self, number: int, rounds: int, cohort: Sequence[int]) -> None:
        if number == 2:
            self.killed = actors()[:1]
            os.kill(self.killed[0], signal.SIGKILL)


def actors() -> list[int]:
    processes = psutil.Process().children(recursive=True)
    alive = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
    return [process.pid for process in alive if "ray::Worker" in " ".join(process.cmdline())]


def test_two_workers_one_of_them_killed_give_the_run_in_one_process(world: Path, tmp_path: Path) -> None:
    """FLoRA: what a client must be told depends on what its worker has seen; the new one has seen nothing."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra: pip install 'fedsb[ray]'")
    run(config_of(world, method__name="flora"), tmp_path / "one")
    kill = Kill()
    run(config_of(world, method__name="flora", **RAY), tmp_path / "ray", progress=kill)
    assert kill.killed
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64  # nobody else of the network can send it work
    assert not actors()
    assert all(line["rejected"] == [] for line in metrics_of(tmp_path / "ray"))
    assert timeless(tmp_path / "one") == timeless(tmp_path / "ray")
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "ray")


# ---------------------------------------------------------------- workers that are lost: a Ray made up


class Lost(Exception):
    """Stands for what Ray raises where an actor died."""


class MadeUpRay(ModuleType):
    """Ray as far as it is used here: an answer is there at once, or never, or its actor is lost.

    Attributes:
        fates: what becomes of each question in turn; then all are answered.
    """

    def __init__(self, fates: Sequence[str], cores: float = 2.0) -> None:
        super().__init__("ray")
        self.fates, self.cores, self.killed, self.begun = list(fates), cores, 0, False

    def is_initialized(self) -> bool:
        return self.begun

    def init(self, *args: Any, **more: Any) -> None:
        self.begun = True

    def shutdown(self) -> None:
        self.begun = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def kill(self, actor: Any) -> None:
        self.killed += 1

    def remote(self, kind: type) -> Any:
        made = SimpleNamespace(remote=lambda threads: self._actor())
        return SimpleNamespace(options=lambda **options: made)

    def _actor(self) -> Any:
        opens = SimpleNamespace(remote=lambda request: lambda: None)
        return SimpleNamespace(open=opens, answer=SimpleNamespace(remote=self._answer))

    def _answer(self, client: int, message: bytes) -> Any:
        fate = self.fates.pop(0) if self.fates else "answers"

        def result() -> tuple[dict[str, Any], bytes]:
            if fate == "lost":
                raise Lost
            return {"client": client}, message

        result.hangs = fate == "hangs"  # type: ignore[attr-defined]
        return result

    def wait(self, references: list[Any], num_returns: int, timeout: float | None) -> Any:
        ready = [reference for reference in references if not reference.hangs]
        return (ready[:1], references)

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        return reference()


@pytest.fixture
def outcomes(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(fates, cores) -> what becomes of clients 0 to 3 in a round."""
    name = "fedsb.runner.processes.ray_workers"

    def ask(*fates: str, cores: float = 2.0) -> tuple[list[Any], MadeUpRay]:
        ray, errors = MadeUpRay(fates, cores), ModuleType("ray.exceptions")
        errors.RayError = Lost  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        with module.ray_workers(config_of(world, **RAY), tmp_path, Silent()) as ask_clients:
            found = list(ask_clients([0, 1, 2, 3], lambda client: b"%d" % client))
        assert not ray.begun
        return found, ray

    yield ask
    sys.modules.pop(name, None)


ALL_ARRIVED = [Arrived(client, b"%d" % client) for client in range(4)]


def test_a_client_whose_worker_was_lost_is_asked_once_more(outcomes: Any) -> None:
    assert outcomes()[0] == ALL_ARRIVED
    found, ray = outcomes("answers", "lost")
    assert found == ALL_ARRIVED
    assert ray.killed == 3  # the one that was lost, and both at the end


def test_a_client_that_loses_two_workers_has_failed(outcomes: Any) -> None:
    found, _ = outcomes("lost", "answers", "lost")
    assert [type(outcome) for outcome in found].count(Failed) == 1
    (failed,) = [outcome for outcome in found if isinstance(outcome, Failed)]
    assert failed.reason == "its Ray worker was lost 2 times"


def test_a_worker_that_does_not_answer_costs_its_client_the_round(outcomes: Any) -> None:
    found, _ = outcomes("hangs")  # the first place that is asked is that of client 1
    late = Failed(1, "its Ray worker did not answer in time")
    assert found == [ALL_ARRIVED[0], late, *ALL_ARRIVED[2:]]


def test_workers_that_are_all_lost_end_the_run(outcomes: Any) -> None:
    with pytest.raises(RunFailed, match=r"a Ray worker was lost \(Lost\); the last finished round is saved"):
        outcomes(*["lost"] * 20)


def test_more_workers_than_cores_are_refused(outcomes: Any) -> None:
    with pytest.raises(InputError, match=r"federation\.engine\.workers: 2 workers of 1 threads .* has 1;"):
        outcomes(cores=1.0)
