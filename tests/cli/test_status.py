"""`fedsb status`: a run's folder before, while and after it runs."""

import json

import pytest
from run_helpers import classification_config, main_status, python, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.cli.status import run_status
from fedsb.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    world = tmp_path_factory.mktemp("status")
    tiny_bert(world / "bert")
    write_data(world / "data", train=45, test=12)
    config = classification_config(world / "bert", world / "data", federation__rounds=2)
    return run(RunConfig.from_dict(config), world / "run").folder


def test_a_finished_run(folder):
    status = run_status(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert (status["finished"], status["round"], status["rounds"]) == (True, 2, 2)
    assert status["eval"]["accuracy"] == summary["final"]["accuracy"]
    assert status["clients"] == [0, 1, 2]


def test_a_run_on_its_way(folder, tmp_path):
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert run_status(tmp_path)["round"] is None
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))
    status = run_status(tmp_path)
    assert (status["finished"], status["round"]) == (False, 1)
    assert (
        status["upload_bytes"] == json.loads(lines[0])["upload_bytes"] + json.loads(lines[1])["upload_bytes"]
    )


def test_it_prints_lines_or_json(folder, monkeypatch, capsys):
    assert main_status(monkeypatch, "status", folder) == 0
    assert "fed-sb, round 2 of 2, finished" in capsys.readouterr().out
    assert main_status(monkeypatch, "status", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["round"] == 2


def test_a_line_that_is_not_json_is_named(folder, tmp_path):
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    (tmp_path / "metrics.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: a line is not valid JSON"):
        run_status(tmp_path)


def test_it_loads_no_torch():
    """So that `watch fedsb status` costs nothing."""
    done = python("import sys, fedsb.cli.status; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"


def test_no_run_is_said(tmp_path, monkeypatch, capsys):
    assert main_status(monkeypatch, "status", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("method: {}\n")
    with pytest.raises(InputError):
        run_status(tmp_path)
