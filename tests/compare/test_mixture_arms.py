"""A mixture beside other methods: tuned as they are, with what a perfect gate would give."""

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from comparison_helpers import document
from run_helpers import classification_config, main_status, tiny_bert, write_config, write_data

from fedsb.methods import ALL

(MIXER,) = (method.name for method in ALL if method.experts is not None)
ARMS = "routed,fed-sb,local"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside one core at the same upload, and clients that train alone."""
    root = tmp_path_factory.mktemp("mixture-arms")
    tiny_bert(root / "bert")
    write_data(root / "data", train=60, test=12)
    config = classification_config(
        root / "bert",
        root / "data",
        method={
            "name": MIXER,
            "rank": 4,
            "targets": ["query", "value"],
            "init": {"kind": "orthonormal", "head_warmup": None},
            "experts": {"by": "site"},
        },
        federation={"clients": 4, "rounds": 3, "partition": {"kind": "by-column", "column": "site"}},
        evaluation={"every": 3},
        compare={
            "arms": {
                "routed": {},
                "fed-sb": {"method.experts": None},
                "local": {"method.experts.by": None, "federation.client_experts": [0, 1, 2, 3]},
            },
            "learning_rates": {"default": [0.02], "routed": [0.02, 0.06]},
            "tuning_budget": 2,
            "validation": 12,
        },
    )
    path = write_config(root / "c.yaml", config)
    with pytest.MonkeyPatch.context() as patch:
        words = ["compare", path, "--methods", ARMS, "--seeds", "0", "--out", root / "compared"]
        assert main_status(patch, *words) == 0
    return root / "compared"


def summary_of(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    return json.loads((folder / run["run"] / "summary.json").read_text())


def test_every_arm_was_run_and_the_mixture_tuned(folder: Path) -> None:
    content = document(folder)
    assert content["failed"] == []
    assert {name: row["seeds"] for name, row in content["summary"].items()} == dict.fromkeys(
        ARMS.split(","), 1
    )
    assert content["summary"]["routed"]["tuned"]
    assert {line["learning_rate"] for line in content["tuning"]} == {0.02, 0.06}


def test_the_numbers_are_those_of_the_runs(folder: Path) -> None:
    content = document(folder)
    for name in ("routed", "local"):
        runs = [run for run in content["runs"] if run["method"] == name]
        mixtures = [summary_of(folder, run)["mixture"] for run in runs]
        routing = content["summary"][name]["routing"]
        assert routing["static"] == pytest.approx(mean(m["static"]["accuracy"] for m in mixtures))
        assert [run["value"] for run in runs] == [
            summary_of(folder, run)["final"]["accuracy"] for run in runs
        ]
    by_rows = [summary_of(folder, run)["mixture"] for run in content["runs"] if run["method"] == "routed"]
    routing = content["summary"]["routed"]["routing"]
    assert routing["oracle"] == pytest.approx(mean(m["oracle"]["accuracy"] for m in by_rows))
    assert routing["right"] == pytest.approx(mean(m["right"] for m in by_rows))
    assert content["summary"]["local"]["routing"]["oracle"] is None, "no row says whose client's it is"
    assert content["summary"]["fed-sb"]["routing"] is None


def test_in_its_hard_rounds_the_mixture_sends_what_fed_sb_does(folder: Path) -> None:
    rounds = {}
    for name in ("routed", "fed-sb"):
        (run,) = (run for run in document(folder)["runs"] if run["method"] == name)
        lines = (folder / run["run"] / "metrics.jsonl").read_text().splitlines()
        rounds[name] = json.loads(lines[1])["upload_parameters"]
    assert rounds["routed"] == rounds["fed-sb"]


def test_the_page_has_a_column_for_the_oracle_and_one_for_the_mean(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "oracle†" in page
    assert "mean of experts†" in page
    (row,) = re.findall(r'<tr>\s*<th scope="row">routed</th>.*?</tr>', page.split("Result")[2], re.DOTALL)[:1]
    shown = f"{100 * document(folder)['summary']['routed']['routing']['static']:.1f}"
    assert shown in row


def test_the_command_says_it_in_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", folder.parent / "c.yaml", "--methods", ARMS, "--seeds", "0", "--out", folder]
    assert main_status(monkeypatch, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"routed: [\d.]+ % with each row's own expert, [\d.]+ % with the experts' mean", said)
    assert "local: — with each row's own expert" in said
    assert "fed-sb: " not in said
