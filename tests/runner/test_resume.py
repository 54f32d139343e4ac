"""A run that was killed, at whatever moment, is finished by --resume as if nothing had happened."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import suppress

import pytest
from run_helpers import (
    adapter_bytes,
    changed,
    classification_config,
    main_status,
    metrics_of,
    snapshot,
    timeless,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.common import files
from fedsb.errors import InputError, RunFailed
from fedsb.runner import checkpoint


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


def assert_same_result(folder, expected):
    assert timeless(folder) == timeless(expected)
    assert adapter_bytes(folder) == adapter_bytes(expected)
    for name in ("partition.json", "ledger.json", "config.yaml", "adapter/adapter_config.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, expected))
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
        patch.setattr("fedsb.federation.start.factors.quick_svd", die)
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
    folders = {name: world / f"killed-{name}" for name in MOMENTS}
    for name, folder in folders.items():
        _kill_when(slow_config, folder, MOMENTS[name])
    before = {name: snapshot(folder) for name, folder in folders.items()}
    for folder in folders.values():
        start(slow_config, folder, resume=True)
    start(slow_config, world / "killed-none")
    return folders | {"unbroken": world / "killed-none"}, before


def _kill_when(config, folder, appears):
    process = child(start, config, folder)
    deadline = time.monotonic() + 120
    while not (folder / appears).exists():
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def child(do, *arguments):
    """A process that does this and has the libraries loaded already."""
    process = multiprocessing.get_context("fork").Process(target=do, args=arguments)
    process.start()
    return process


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


# What a run was started on


@pytest.fixture
def started(world, config, tmp_path, monkeypatch):
    """A run on copies of the inputs, killed in its second round; and its config."""
    shutil.copytree(world / "bert", tmp_path / "bert")
    shutil.copytree(world / "data", tmp_path / "data")
    private_config = changed(
        config,
        model__path=str(tmp_path / "bert"),
        data__train=str(tmp_path / "data" / "train.jsonl"),
        data__test=str(tmp_path / "data" / "test.jsonl"),
    )
    die_in_round_two(private_config, tmp_path / "run", monkeypatch)
    return private_config, tmp_path


def die_in_round_two(config, folder, monkeypatch):
    save = checkpoint.save_checkpoint

    def killed(place, saved):
        if saved.state.round == 2:
            raise Killed
        save(place, saved)

    with monkeypatch.context() as patch:
        patch.setattr("fedsb.runner.loop.save_checkpoint", killed)
        with pytest.raises(Killed):
            start(config, folder)


def edited(path, change):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(lines)))


def relabelled(lines):
    return [line.replace('"pos"', '"x"').replace('"neg"', '"pos"').replace('"x"', '"neg"') for line in lines]


OTHER_INPUTS = {
    "reversed": ("train.jsonl", lambda lines: lines[::-1], "training rows"),
    "halved": ("train.jsonl", lambda lines: lines[: len(lines) // 2], "training rows"),
    "one more": ("train.jsonl", lambda lines: [*lines, lines[0]], "training rows"),
    "relabelled": ("train.jsonl", relabelled, "training rows"),
    "one word": ("train.jsonl", lambda lines: [lines[0].replace("good", "bad"), *lines[1:]], "training rows"),
    "tests halved": ("test.jsonl", lambda lines: lines[: len(lines) // 2], "test rows"),
    "tests relabelled": ("test.jsonl", relabelled, "test rows"),
}


@pytest.mark.parametrize(("name", "change", "named"), OTHER_INPUTS.values(), ids=OTHER_INPUTS)
def test_other_rows_are_refused_and_nothing_is_changed(started, name, change, named):
    config, folder = started
    edited(folder / "data" / name, change)
    before = snapshot(folder / "run")
    with pytest.raises(InputError, match=rf"(?s)--resume: .* started on others.*the {named}") as caught:
        start(config, folder / "run", resume=True)
    assert snapshot(folder / "run") == before
    assert ("training rows" in str(caught.value)) == ("training rows" in named)
    assert "w1" not in str(caught.value)


def test_other_base_weights_are_refused(started):
    from safetensors.torch import load_file, save_file

    config, folder = started
    file = folder / "bert" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "attention.self.query.weight" in name)
    save_file(weights | {name: weights[name] + 1e-3}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"(?s)started on others.*the weights of the base model") as caught:
        start(config, folder / "run", resume=True)
    assert "rows" not in str(caught.value)


def test_a_config_that_was_changed_in_the_folder_is_refused(started):
    config, folder = started
    other = RunConfig.from_dict(changed(config, training__learning_rate=0.5))
    (folder / "run" / "config.yaml").write_text(other.to_yaml())
    with pytest.raises(InputError, match=r"(?s)not the one.*training.learning_rate: 0.02 -> 0.5"):
        run(other, folder / "run", resume=True)


class Told:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.stages = []

    def stage(self, text):
        self.stages.append(text)

    def __getattr__(self, name):
        return lambda *arguments, **options: None


def test_other_versions_are_named_and_the_run_is_resumed(started, monkeypatch):
    config, folder = started
    from fedsb.runner import started_on

    now = started_on.versions()
    monkeypatch.setattr(started_on, "versions", lambda: now | {"torch": "0.0", "peft": "none"})
    told = Told()
    start(config, folder / "run", resume=True, progress=told)
    said = [text for text in told.stages if "other versions" in text]
    assert said == [
        "resumed with other versions than at the start: "
        f"torch {now['torch']} -> 0.0, peft {now['peft']} -> none"
    ]
    assert len(metrics_of(folder / "run")) == 3


@pytest.mark.parametrize(
    "change", [{"round": 0}, {"round": 10**9}, {"metrics": []}, {"ledger": []}, {"x": 1}]
)
def test_a_state_file_with_another_value_in_it_is_refused(copy, change):
    file = copy / "checkpoint" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=r"state\.json: cannot read this checkpoint .*changed or cut off"):
        run(RunConfig.from_yaml(copy / "config.yaml"), copy, resume=True)


def test_rounds_without_a_checkpoint_are_not_begun_again(copy):
    (copy / "checkpoint" / "state.json").unlink()
    before = snapshot(copy)
    with pytest.raises(InputError, match=r"has rounds and no checkpoint/state\.json"):
        run(RunConfig.from_yaml(copy / "config.yaml"), copy, resume=True)
    assert snapshot(copy) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.json", "partition.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000])
def test_files_that_follow_from_the_checkpoint_are_written_again(copy, unbroken, name, content):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    run(RunConfig.from_yaml(copy / "config.yaml"), copy, resume=True)
    assert (copy / name).read_bytes() == (unbroken / name).read_bytes()


def test_what_a_kill_left_half_written_is_removed(started):
    config, folder = started
    parts = [folder / "run" / name for name in (".config.yaml.0.part", "checkpoint/.state.json.1.part")]
    for part in parts:
        part.write_text("half")
    start(config, folder / "run", resume=True)
    assert not list((folder / "run").rglob("*.part"))


# Two at once


def test_a_second_process_on_a_folder_is_refused_and_damages_nothing(started, unbroken, monkeypatch, capsys):
    config, folder = started
    out = folder / "run"
    with files.alone(out / files.LOCK, "another process"):
        before = snapshot(out)
        code, err = status(monkeypatch, capsys, "run", "--out", out, "--resume")
        assert (code, snapshot(out)) == (1, before)
        assert f"{out}: another process works on it" in " ".join(err.split())
    start(config, out, resume=True)
    assert adapter_bytes(out) == adapter_bytes(unbroken)


def test_of_two_that_resume_at_once_one_does_it(started, unbroken):
    config, folder = started
    calls = [child(resume_or_say_why, config, folder, number) for number in range(2)]
    for call in calls:
        call.join(300)
    said = [(folder / f"said-{number}").read_text() for number in range(2)]
    assert "" in said
    assert all(not text or "another process works on it" in text for text in said), said
    assert adapter_bytes(folder / "run") == adapter_bytes(unbroken)


def resume_or_say_why(config, folder, number):
    try:
        start(config, folder / "run", resume=True)
        said = ""
    except RunFailed as failed:
        said = str(failed)
    (folder / f"said-{number}").write_text(said)


def test_a_refused_run_leaves_no_folder(tmp_path, config):
    with pytest.raises(InputError, match="no such file"):
        start(changed(config, data__train=str(tmp_path / "none.jsonl")), tmp_path / "runs" / "new")
    assert not (tmp_path / "runs").exists()
