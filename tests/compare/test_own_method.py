"""The walk-through "your method against all others": a method in a file outside the package, beside ours."""

import os
import re
import sys
from pathlib import Path

import pytest
from comparison_helpers import assert_refused, document
from run_helpers import changed, main_status, write_config

from fedsb.methods import METHODS

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own-method.md"
OTHERS = "fed-sb,lora-xs,ravan,fedit,ffa-lora,flora,fedex-lora"


@pytest.fixture(scope="module")
def guides_file(tmp_path_factory):
    text = GUIDE.read_text(encoding="utf-8")
    name, program = re.findall(r"^:caption: (\S+\.py)\n\n(.*?)^```$", text, re.M | re.S)[0]
    file = tmp_path_factory.mktemp("elsewhere") / name
    file.write_text(program)
    return file


@pytest.fixture(scope="module")
def fixed(config, tmp_path_factory):
    """One rate an arm, so that nothing is tuned."""
    smaller = changed(config, compare={"learning_rates": 0.02}, federation__rounds=1)
    return write_config(tmp_path_factory.mktemp("fixed") / "fixed.yaml", smaller)


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    monkeypatch.setenv("FEDSB_WITH", "")
    monkeypatch.setattr(METHODS, "_values", dict(METHODS._values))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.endswith(".py"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def compared(guides_file, fixed, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSB_WITH", "")
        patch.setattr(METHODS, "_values", dict(METHODS._values))
        patch.delitem(sys.modules, str(guides_file), raising=False)
        asked = ("--methods", f"elected-sign,{OTHERS}", "--seeds", "0", "--out", out)
        assert main_status(patch, "compare", fixed, "--with", guides_file, *asked) == 0
    sys.modules.pop(str(guides_file), None)
    return out


def test_it_is_compared_with_the_others(compared):
    found = document(compared)
    assert list(found["summary"]) == ["elected-sign", *OTHERS.split(",")]
    assert found["baseline"] == "elected-sign"
    sent = {name: row["bytes_per_round"] for name, row in found["summary"].items()}
    assert sent["elected-sign"] == pytest.approx(sent["fed-sb"], rel=0.01)
    assert not found["failed"]


def test_processes_of_a_comparison_know_the_file(compared, guides_file, fixed, fedsb):
    asked = ("--methods", "elected-sign", "--seeds", "0,1", "--out", compared, "--jobs", 2)
    status, _, problem = fedsb("compare", fixed, "--with", guides_file, *asked)
    assert status == 0, problem
    seeds = [run["seed"] for run in document(compared)["runs"] if run["method"] == "elected-sign"]
    assert seeds == [0, 1]


def test_the_file_runs_once_and_what_it_says_counts_everywhere(fedsb, guides_file, world, tmp_path):
    noted = tmp_path / "noted.py"
    noted.write_text(f"{guides_file.read_text()}\nopen({str(tmp_path / 'times')!r}, 'a').write('x')\n")
    sizes = ("--clients", 2, "--rank", 2, "--labels", 3, "--methods", "elected-sign,fed-sb")
    status, out, _ = fedsb("cost", "--with", noted, "--model", world / "bert", *sizes)
    assert status == 0
    assert "elected-sign" in out
    assert (tmp_path / "times").read_text() == "x"
    assert os.environ["FEDSB_WITH"] == str(noted)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["--with: expected a Python file that registers methods, found"]),
        ("import torchy", ["broken.py cannot be run: ModuleNotFoundError"]),
        (
            "from fedsb.methods import register, fedit\nregister(fedit._replace(source='me'))",
            ["broken.py cannot be run", "the name fedit is taken"],
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_refused(fedsb, fixed, tmp_path, content, parts):
    file = tmp_path / "broken.py"
    if content is not None:
        file.write_text(content)
    assert_refused(fedsb("run", fixed, "--with", file, "--out", tmp_path / "out"), parts)
    assert not (tmp_path / "out").exists()
