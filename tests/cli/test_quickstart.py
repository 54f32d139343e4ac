"""`fedsb run` with nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedsb.cli import app

pytestmark = pytest.mark.plots


@pytest.mark.slow
def test_the_quickstart_learns_and_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsb", "run", "-s", "federation.rounds=2"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 0
    summary = json.loads((tmp_path / "runs/quickstart/summary.json").read_text())
    assert summary["base"]["accuracy"] < 0.35
    assert summary["final"]["accuracy"] > summary["base"]["accuracy"] + 0.2
    partition = json.loads((tmp_path / "runs/quickstart/partition.json").read_text())
    assert len(partition["clients"]) == 5
    printed = capsys.readouterr().out
    assert "runs/quickstart/report.html" in printed
    assert "fedsb export runs/quickstart" in printed


def test_a_second_quickstart_takes_the_next_free_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsb.cli.terminal import default_folder

    monkeypatch.chdir(tmp_path)
    assert default_folder(None, resume=False) == Path("runs/quickstart")
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    assert default_folder(None, resume=False) == Path("runs/quickstart-2")
    assert default_folder(None, resume=True) == Path("runs/quickstart")


@pytest.mark.parametrize("there", ["a file", "another folder"])
def test_a_place_that_is_taken_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    out = tmp_path / "out"
    if there == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["fedsb", "run", "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
