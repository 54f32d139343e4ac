"""A run that was killed, at whatever moment, is finished by --resume as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from run_helpers import (
    adapter_bytes,
    changed,
    classification_config,
    command,
    environment,
    main_status,
    metrics_of,
    python,
    snapshot,
    timeless,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb import RunConfig, checkpoint, files, run
from fedsb.errors import InputError


class Killed(BaseException):
    """As good as SIGKILL here: nothing in a run catches it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=36, test=12)
    return folder


@pytest.fixture(scope="module")
def config(world):
    warmup = {"rounds": 1, "steps": 2}
    return classification_config(
        world / "bert",
        world / "data",
        federation__rounds=2,
        method__init__head_warmup=warmup,
        method__init__batch_size=8,  # so that the estimate keeps running sums
    )


@pytest.fixture(scope="module")
def unbroken(world, config):
    run(RunConfig.from_dict(config), world / "unbroken")
    return world / "unbroken"


def start(config, folder, **options):
    return run(RunConfig.from_dict(config), folder, **options)


def finish(config, folder):
    """What a user does after a kill: --resume, or where there was no run yet, again without it."""
    started = (folder / "config.yaml").exists()
    return start(config, folder, resume=started)


def assert_same_result(folder, wanted):
    assert timeless(folder) == timeless(wanted)
    assert adapter_bytes(folder) == adapter_bytes(wanted)
    for name in ("partition.json", "ledger.json", "config.yaml", "adapter/adapter_config.json"):
        assert (folder / name).read_bytes() == (wanted / name).read_bytes(), name
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, wanted))
    for key in mine.keys() - {"seconds", "peak_memory_bytes"}:
        assert mine[key] == theirs[key], key


# Killed at each write, one after the other


def writes_of(world, config, name, monkeypatch, *, kill_at=None, before=True):
    """Run; die at write number `kill_at`, before or after it takes its place. The names written so far."""
    seen, replace = [], os.replace

    def counted(source, target):
        if before and len(seen) == kill_at:
            raise Killed
        replace(source, target)
        seen.append(os.path.basename(target))
        if not before and len(seen) == kill_at:
            raise Killed

    monkeypatch.setattr(files.os, "replace", counted)
    try:
        start(config, world / name)
    except Killed:
        pass
    finally:
        monkeypatch.undo()
    return seen


def test_order_of_writes(world, config, monkeypatch):
    """state.json comes after the files that it names, summary.json after all that a result needs."""
    seen = writes_of(world, config, "counted", monkeypatch)
    assert seen[:2] == ["config.yaml", "partition.json"]
    assert seen[2:5] == ["factors-00000.safetensors", "round-00000.safetensors", "state.json"]
    assert seen.index("round-00001.safetensors") + 1 == seen.index("state.json", 5)
    end = seen[-4:]
    assert end == ["adapter_model.safetensors", "adapter_config.json", "summary.json", "report.html"]


WRITES = 21


@pytest.mark.parametrize("number", range(WRITES))
def test_killed_just_before_a_write_takes_its_place(world, config, unbroken, monkeypatch, number):
    folder = world / f"before-{number}"
    seen = writes_of(world, config, folder.name, monkeypatch, kill_at=number)
    assert len(seen) == number
    assert not (folder / "report.html").exists()
    finish(config, folder)
    assert_same_result(folder, unbroken)


def test_all_writes_are_covered_above(world, config, monkeypatch):
    assert len(writes_of(world, config, "counted-again", monkeypatch)) == WRITES


@pytest.mark.parametrize("number", [1, 2, 4, 5, 9, 10])
def test_killed_just_after_a_write_took_its_place(world, config, unbroken, monkeypatch, number):
    folder = world / f"after-{number}"
    assert len(writes_of(world, config, folder.name, monkeypatch, kill_at=number, before=False)) == number
    finish(config, folder)
    assert_same_result(folder, unbroken)


def test_killed_again_and_again(world, config, unbroken, monkeypatch):
    """Each attempt has twelve writes; the third is through, and the result is the same."""
    folder, replace, attempts = world / "often", os.replace, 0
    while not (folder / "report.html").exists():
        attempts += 1
        left = [12]

        def counted(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", counted)
            with suppress(Killed):
                finish(config, folder)
        assert attempts < 10
    assert attempts == 3
    assert_same_result(folder, unbroken)


def test_killed_between_state_and_removing_the_former_vector(world, config, unbroken, monkeypatch):
    folder = world / "unlink"

    def die(path, missing_ok=False):
        if path.name.startswith("round-"):
            raise Killed
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, "unlink", die)
        with pytest.raises(Killed):
            start(config, folder)
    assert len(list((folder / "checkpoint").glob("round-*.safetensors"))) == 2
    finish(config, folder)
    assert_same_result(folder, unbroken)
    assert [p.name for p in (folder / "checkpoint").glob("round-*")] == ["round-00002.safetensors"]


def test_killed_in_the_middle_of_the_start(world, config, unbroken, monkeypatch):
    """Running sums of the estimate are left in checkpoint/spill; the next start clears them away."""
    folder = world / "spill"

    def die(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fedsb.contributions.quick_svd", die)
        with pytest.raises(Killed):
            start(config, folder)
    assert any((folder / "checkpoint" / "spill").iterdir())
    finish(config, folder)
    assert_same_result(folder, unbroken)
    assert not (folder / "checkpoint" / "spill").exists()


# Really killed

MOMENTS = {
    "start": "config.yaml",
    "round-2": "checkpoint/round-00001.safetensors",
    "end": "adapter",
}


@pytest.fixture(scope="module")
def slow_config(world, config):
    """Long enough that the kill hits the moment meant."""
    return changed(config, federation__rounds=3, training__epochs=3, training__batch_size=2)


@pytest.fixture(scope="module")
def killed(world, slow_config):
    """Name -> the folder of a run killed then; and `unbroken`. All but that one then resumed."""
    path = write_config(world / "slow.yaml", slow_config)
    folders = {name: world / f"killed-{name}" for name in MOMENTS}
    for name, folder in folders.items():
        _kill_when(path, folder, MOMENTS[name])
    before = {name: snapshot(folder) for name, folder in folders.items()}
    calls = [["run", path, "--out", folder, "--resume"] for folder in folders.values()]
    _several([["run", path, "--out", world / "killed-none"], *calls])
    return folders | {"unbroken": world / "killed-none"}, before


def _kill_when(config, folder, appears):
    process = subprocess.Popen(
        command("run", config, "--out", folder), env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / appears).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def _several(calls):
    """Several commands in one process, to load the libraries once."""
    script = """
import json, sys
from fedsb.cli import main
for call in json.loads(sys.argv[1]):
    sys.argv = ["fedsb", *call]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (call, stop.code)
"""
    done = python(script, json.dumps([[str(word) for word in call] for call in calls]))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_and_resume_give_what_an_unbroken_run_gives(killed, moment):
    folders, before = killed
    assert "summary.json" not in before[moment]
    assert_same_result(folders[moment], folders["unbroken"])


@pytest.mark.slow
def test_rounds_that_were_done_are_not_done_again(killed):
    folders, before = killed
    done = [json.loads(line) for line in before["end"]["metrics.jsonl"].decode().splitlines()]
    assert metrics_of(folders["end"])[: len(done)] == done  # with the seconds of the first attempt


# What resume refuses


def status(monkeypatch, capsys, *arguments):
    capsys.readouterr()
    code = main_status(monkeypatch, *arguments)
    return code, capsys.readouterr().err


@pytest.fixture
def copy(unbroken, tmp_path):
    return shutil.copytree(unbroken, tmp_path / "copy")


def test_another_config_is_refused_with_the_keys_that_differ(copy, config, tmp_path, monkeypatch, capsys):
    other = changed(config, method__rank=2, training__learning_rate=0.5)
    path = write_config(tmp_path / "other.yaml", other)
    before = snapshot(copy)
    code, err = status(monkeypatch, capsys, "run", path, "--out", copy, "--resume")
    assert code == 2
    assert "method.rank: 4 -> 2" in err
    assert "training.learning_rate: 0.02 -> 0.5" in err
    assert "batch_size" not in err
    assert snapshot(copy) == before


def test_resume_without_a_config_takes_the_run_s_own(copy, monkeypatch, capsys):
    before = snapshot(copy)
    assert status(monkeypatch, capsys, "run", "--out", copy, "--resume")[0] == 0
    assert snapshot(copy) == before


def test_files_of_the_checkpoint_that_were_changed_are_refused(copy):
    vector = next((copy / "checkpoint").glob("round-*"))
    content = vector.read_bytes()
    (copy / "summary.json").unlink()
    for spoiled in (content[:-4], content[:-1] + b"\x7f", b""):
        vector.write_bytes(spoiled)
        with pytest.raises(InputError, match=f"{vector.name}: this file of the checkpoint was changed"):
            run(RunConfig.from_yaml(copy / "config.yaml"), copy, resume=True)
    vector.unlink()
    with pytest.raises(InputError, match=f"{vector.name}: this file of the checkpoint is missing"):
        run(RunConfig.from_yaml(copy / "config.yaml"), copy, resume=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"round": 1, "files": {}}'])
def test_a_state_file_that_is_no_state_is_refused(copy, content):
    (copy / "checkpoint" / "state.json").write_text(content)
    with pytest.raises(InputError, match=r"state\.json: cannot read this checkpoint.*another --out"):
        run(RunConfig.from_yaml(copy / "config.yaml"), copy, resume=True)
