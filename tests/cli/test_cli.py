"""The command line: exit statuses, clean JSON, help with examples."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from run_helpers import (
    causal_config,
    classification_config,
    command,
    environment,
    main_status,
    shell,
    write_config,
)

COMMANDS = ["run", "compare", "evaluate", "export", "report", "doctor", "cost", "version"]


def test_run_prints_plain_lines_into_a_pipe(world, tmp_path, fedsb):
    status, out, err = fedsb("run", world / "good.yaml", "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == "· reading data"
    assert any(re.match(r"base model +accuracy 0\.\d{4} .* loss \d\.\d{4}", line) for line in lines)
    assert any(re.match(r"  client 2: 12 examples, \d+/s$", line) for line in lines)
    assert any(re.match(r"round 1 of 1 .*train loss \d\.\d{4}  up .*  3 clients  \d", line) for line in lines)
    assert f"report   {tmp_path / 'run' / 'report.html'}" in out
    assert f"fedsb export {tmp_path / 'run'} --format merged" in out
    assert all(len(line) < 200 for line in lines)


def test_a_run_that_failed_exits_with_1_and_says_how_to_resume(world, tmp_path, fedsb):
    slow = "federation.client_timeout_seconds=1e-6"
    status, out, err = fedsb("run", world / "good.yaml", "--out", tmp_path / "run", "-s", slow)
    assert status == 1
    assert err.startswith("error: round 1: no client's update could be used (client 0: timed out")
    assert "client 1 left out: timed out" in out
    assert not (tmp_path / "run" / "summary.json").exists()


def test_default_folders_are_numbered(world, tmp_path, fedsb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert fedsb("run", world / "good.yaml")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["good", "good-2"]
    assert fedsb("run", world / "good.yaml", "--resume")[0] == 0  # the newest: nothing to do
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_relative_paths_in_a_config_work_from_anywhere_afterwards(world, tmp_path, fedsb, monkeypatch):
    monkeypatch.chdir(world)
    config = classification_config(
        Path("bert"), Path("data"), federation__rounds=1, method__init__head_warmup=None
    )
    path = write_config(tmp_path / "relative.yaml", config)
    assert fedsb("run", path, "--out", tmp_path / "run")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert fedsb("evaluate", "--run", "run")[0] == 0
    assert fedsb("run", "--out", "run", "--resume")[0] == 0


def test_evaluate_gives_the_run_s_final_metrics(world, fedsb):
    status, out, err = fedsb("evaluate", "--run", world / "done", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    final = json.loads((world / "done" / "summary.json").read_text())["final"]
    scores = document.pop("scores")
    assert document == {"metrics": pytest.approx(final, abs=1e-6), "examples": 12}
    assert scores.keys() == final.keys()
    assert scores["accuracy"]["low"] < final["accuracy"] < scores["accuracy"]["high"]
    assert {score["count"] for score in scores.values()} == {12}
    assert json.loads((world / "done/evaluation/scores.json").read_text())["scores"] == scores
    assert "95 % interval" in (world / "done/report.html").read_text()


def test_evaluate_model_with_and_without_adapter(world, fedsb):
    summary = json.loads((world / "done" / "summary.json").read_text())
    shared = ("evaluate", "--model", world / "bert", "--config", world / "good.yaml", "--json")
    base = json.loads(fedsb(*shared)[1])
    assert base["metrics"] == pytest.approx(summary["base"], abs=1e-6)
    adapted = json.loads(fedsb(*shared, "--adapter", world / "done" / "adapter")[1])
    assert adapted["metrics"] == pytest.approx(summary["final"], abs=1e-6)


def test_evaluate_prints_a_table(world, fedsb):
    status, out, _ = fedsb("evaluate", "--run", world / "done", "-s", "data.limit.test=6")
    assert status == 0
    assert "6 examples" in out
    assert re.search(r"accuracy\W+\d\.\d{4}", out)


def test_causal_lm_scores_of_evaluate(world, tmp_path, fedsb):
    config = causal_config(world / "llama", world / "data", federation__rounds=1)
    path = write_config(tmp_path / "c.yaml", config)
    assert fedsb("run", path, "--out", tmp_path / "run")[0] == 0
    scores = json.loads(fedsb("evaluate", "--run", tmp_path / "run", "--json")[1])["metrics"]
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert scores == pytest.approx(final, rel=1e-5)
    assert scores["exact_match"] == final["exact_match"]


def test_doctor_with_a_good_config(world, fedsb):
    status, out, err = fedsb("doctor", world / "good.yaml", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    details = {finding["what"]: finding["detail"] for finding in document["findings"]}
    assert document["ok"] is True
    assert "36 train and 12 test examples, 3 clients with 12 to 12 each" in details["data"]
    assert "labels flat 12, neg 12, pos 12" in details["data"]
    assert details["target layers"] == "4 layers (query, value)"
    size = json.loads((world / "done" / "summary.json").read_text())["communication"]
    assert details["update"].startswith(f"{size['upload_parameters_per_client_per_round']:,} numbers")


def test_doctor_without_a_config_looks_at_the_machine_only(fedsb):
    status, out, _ = fedsb("doctor", "--json")
    assert status == 0
    assert [f["what"] for f in json.loads(out)["findings"]] == ["versions", "device", "disk"]


def test_doctor_prints_a_table(world, fedsb):
    status, out, _ = fedsb("doctor", world / "good.yaml", "-s", "method.rank=99")
    assert status == 2
    assert re.search(r"ok +data +36 train", out)
    assert re.search(r"wrong +model +method\.rank: expected 1 to 32, found 99", out)


def test_report_again_and_over_several_runs(world, tmp_path, fedsb):
    page = (world / "done" / "report.html").read_bytes()
    (world / "done" / "report.html").unlink()
    assert fedsb("report", world / "done")[0] == 0
    assert (world / "done" / "report.html").read_bytes() == page
    other = shutil.copytree(world / "done", tmp_path / "other")
    status, out, _ = fedsb("report", world / "done", other, "--out", tmp_path / "both.html")
    assert status == 0
    assert str(tmp_path / "both.html") in out
    assert (tmp_path / "both.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["version", "--version"])
def test_version(fedsb, name):
    status, out, _ = fedsb(name)
    assert status == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(fedsb, name):
    status, out, _ = fedsb(name, "--help")
    assert status == 0
    assert "Usage" in out
    if name != "version":
        assert "Examples:" in out
        assert f"fedsb {name}" in out


def test_help_lists_every_command_and_where_to_start(fedsb):
    status, out, _ = fedsb("--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert "fedsb run" in out
    assert "--debug" in out


def test_help_says_what_an_argument_is(fedsb):
    assert "YAML file; without it the built-in quickstart." in fedsb("run", "--help")[1]


def test_a_misspelt_command_is_told_the_near_one_once(fedsb):
    assert fedsb("rnu")[2].count("Did you mean 'run'?") == 1


def test_python_m_fedsb_is_the_command():
    assert shell("--version").stdout == shell("version").stdout != ""


def test_debug_raises_the_error_itself(tmp_path, monkeypatch):
    from fedsb.errors import InputError

    monkeypatch.setenv("FEDSB_DEBUG", "")  # which the command sets; undone with this
    with pytest.raises(InputError, match="cannot read"):
        main_status(monkeypatch, "run", tmp_path / "no.yaml", "--debug")


def test_an_error_nobody_expected_exits_with_1(tmp_path, fedsb, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("[odd] place")

    monkeypatch.setattr("fedsb.cli.terminal.run_in_terminal", broken)
    status, _, err = fedsb("run", tmp_path / "x.yaml")
    assert status == 1
    assert "KeyError: '[odd] place'" in err
    assert "--debug" in err


# In processes of their own


@pytest.mark.slow
def test_json_is_alone_on_stdout(world):
    """Whatever the libraries say while they load goes to stderr, if anywhere."""
    done = shell("evaluate", "--run", world / "done", "--json", TRANSFORMERS_VERBOSITY="info")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"metrics", "examples", "scores"}
    assert done.stdout.startswith("{\n")
    assert done.stdout.endswith("}\n")


@pytest.mark.slow
def test_wrong_input_in_a_process(world, tmp_path):
    """Only the message on stderr: no notice of a library beside it."""
    done = shell(
        "run", world / "good.yaml", "--out", tmp_path / "run", "-s", "model.path=" + str(world / "cut")
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.path")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_stops_with_130_and_a_word_on_resume(world, tmp_path):
    arguments = command("run", world / "good.yaml", "--out", tmp_path / "run", "-s", "federation.rounds=5000")
    process = subprocess.Popen(
        arguments,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )
    try:
        while not (tmp_path / "run" / "checkpoint" / "state.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err == f"stopped; resume with: fedsb run --out {tmp_path / 'run'} --resume\n"


def _hear_ctrl_c():
    """Tests started in the background inherit that SIGINT is ignored, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
