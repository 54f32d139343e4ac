"""The papers' tables: their numbers agree with what the papers print besides, their configs with the recipes,
and both forms are comparisons that run."""

import json
from pathlib import Path
from statistics import mean

import pytest
from comparison_helpers import assert_refused

from fedsb.cli.made_inputs import ROWS, make_inputs
from fedsb.compare.arms import make_arms
from fedsb.compare.papers.page import notices
from fedsb.compare.papers.reproduce import Inputs, config_of
from fedsb.compare.papers.table import load_table, settings_of, table_names
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.config.run_config import differences

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = table_names()
ARMS = "fedit,fed-sb-64"
SMALL = ("-s", "data.limit.train=120", "-s", "data.limit.test=40", "-s", "training.epochs=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of each kind model and data, made once."""
    folder = tmp_path_factory.mktemp("made")
    return {kind: Inputs(*make_inputs(kind, folder / kind), made=True) for kind in ROWS}


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_of_a_table_are_comparisons(name, made):
    table = load_table(name)
    for form, inputs in ((table.whole, None), (table.reduced, made[table.reduced.made])):
        for part in form.parts:
            config = config_of(form, part, [], inputs)
            arms = make_arms(config, settings_of(form), [row.arm for row in table.rows])
            for arm in arms:
                check_settings(arm.config)
                assert len(arm.rates) == 1
            ranks = {arm.name: arm.config.method.rank for arm in arms}
            if inputs is None:  # the paper's ranks, but where heads and rank must go together
                assert all(row.rank in (None, ranks[row.arm]) for row in table.rows) or name == "cifar100"


@pytest.mark.parametrize(
    ("name", "part", "arm", "recipe"),
    [
        ("arithmetic", "mistral", "fed-sb-200", "paper/arithmetic-mistral"),
        ("arithmetic", "gemma", "fed-sb-200", "paper/arithmetic-gemma"),
        ("commonsense", "all", "fed-sb-200", "paper/commonsense-iid"),
        ("commonsense-non-iid", "all", "fed-sb-200", "paper/commonsense-by-format"),
        ("snli-federated", "epsilon-3", "fed-sb-64", "private/snli-bert"),
        *[("glue", f"base-{t}", "fedex-lora-4", f"paper/glue-{t}") for t in ("cola", "rte", "mrpc", "sst2")],
        *[("glue", f"base-{t}", "fedex-lora-4", f"paper/glue-{t}") for t in ("qnli", "stsb")],
        ("e2e", "all", "fedex-lora-4", "paper/e2e-gpt2"),
        ("cifar100", "skewed-20", "ravan", "paper/ravan-cifar100"),
    ],
)
def test_an_arm_is_the_papers_recipe(name, part, arm, recipe):
    table = load_table(name)
    config = config_of(table.whole, part, [], None)
    arms = make_arms(config, settings_of(table.whole), [arm])
    assert not differences(RunConfig.from_yaml(RECIPES / f"{recipe}.yaml"), arms[0].config)


def test_the_printed_averages_are_those_of_the_cells():
    for row in load_table("commonsense").rows:
        assert mean(row.cells[:8]) == pytest.approx(row.cells[8], abs=0.011), row.arm
    for row in load_table(
        "commonsense-non-iid"
    ).rows:  # there, the averages themselves do not fit, and it says so
        assert 0.015 < row.cells[8] - mean(row.cells[:8]) < 0.285, row.arm


def test_the_averages_that_the_paper_of_glue_prints_are_those_of_the_cells():
    printed = {
        "central-4": (84.31, 86.71),
        "fedit-4": (83.42, 85.49),
        "ffa-lora-4": (82.13, 83.97),
        "fedex-lora-4": (84.39, 86.39),
        "fedit-1": (83.02, 85.72),
        "ffa-lora-1": (82.06, 84.28),
        "fedex-lora-1": (83.73, 86.49),
    }
    for row in load_table("glue").rows:
        averages = mean(row.cells[:6]), mean(row.cells[6:])
        assert averages == pytest.approx(printed[row.arm], abs=0.011), row.arm


def test_one_command_prints_both_columns_and_resumes(fedsb, runs_done, tmp_path):
    asked = (
        "reproduce",
        "snli-federated",
        "--reduced",
        "--arms",
        "fedit,fed-sb-64",
        "--out",
        tmp_path / "out",
    )
    status, printed, problem = fedsb(*asked, *SMALL)
    assert status == 0, problem
    for words in ("paper", "ours", "74.88", "51.29", "32 (8)", "Not comparable", "2502.15436"):
        assert words in printed
    found = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    column = found["columns"].index("epsilon 3")
    for row in found["rows"]:
        cell = row["cells"][column]
        assert cell["difference"] == pytest.approx(cell["ours"] - cell["paper"])
        assert 0 < cell["ours"] < 100
        assert row["cells"][0]["ours"] is None
    run = json.loads((tmp_path / "out/epsilon-3/runs/fedit/seed-0/summary.json").read_text())
    assert found["rows"][0]["cells"][column]["ours"] == pytest.approx(100 * run["final"]["accuracy"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'href="epsilon-3/report.html"' in page
    assert page.index("<h2>epsilon 3: accuracy, %</h2>") < page.index("<h2>Not run here</h2>")
    assert "<summary>epsilon 10: accuracy, %</summary>" in page
    assert "ours in brackets" in page
    assert "Not comparable" in page
    assert len(runs_done) == 2
    assert fedsb(*asked, *SMALL)[0] == 0
    assert len(runs_done) == 2


def test_a_table_of_benchmarks_is_reproduced_from_one_command(fedsb, tmp_path):
    less = ("-s", "data.limit.train=10", "-s", "data.limit.test=10", "-s", "method.init.samples=10")
    asked = ("reproduce", "commonsense", "--reduced", "--arms", "fedit", "--out", tmp_path / "out")
    status, printed, problem = fedsb(*asked, *less)
    assert status == 0, problem
    for words in ("BoolQ", "62.99", "Average", "74.02", "likelihood"):
        assert words in printed
    found = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    ours = {
        name: cell["ours"] for name, cell in zip(found["columns"], found["rows"][0]["cells"], strict=True)
    }
    run = [value for name, value in ours.items() if value is not None and name != "Average"]
    assert len(run) == 4
    assert ours["Average"] == pytest.approx(mean(run))


def test_every_form_says_how_far_it_can_be_compared():
    table = load_table("commonsense")
    of = {"unknown": table.unknown, "note": table.reduced.note}
    made = notices({"made": True, "reduced": True, **of})
    small = notices({"made": False, "reduced": True, **of})
    whole = notices({"made": False, "reduced": False, **of, "note": ""})
    assert all(said[0].startswith("Not comparable") and "likelihood" in said[1] for said in (made, small))
    assert made[0] != small[0]
    assert whole == [whole[0]]
    assert table.unknown in whole[0]


def test_the_tables_are_listed(fedsb):
    status, printed, _ = fedsb("reproduce")
    assert status == 0
    assert all(name in printed for name in NAMES)
    assert {"arithmetic", "commonsense", "snli-federated", "snli-central", "glue", "e2e", "cifar100"} < {
        *NAMES
    }


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["snli"], ["TABLE: expected one of", "snli-federated", "found 'snli'"]),
        (["../glue"], ["TABLE: expected one of", "found '../glue'"]),
        (["glue", "--reduced", "--arms", "fedit"], ["--arms: expected some of central-4", "found 'fedit'"]),
        (["glue", "--model", "m"], ["--model: has no effect here", "--reduced"]),
        (["glue", "--reduced", "--model", "m"], ["--model and --data: name both"]),
        (["glue", "--reduced", "--model", "m", "--data", "ROOT"], ["has no cola/train.jsonl"]),
        (["glue", "--reduced", "--model", "m", "--data", "ROOT/none"], ["none is no folder"]),
        (["--reduced"], ["--reduced: has no effect here"]),
    ],
)
def test_what_cannot_be_reproduced_is_one_message(fedsb, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    assert_refused(fedsb("reproduce", *[a.replace("ROOT", str(tmp_path)) for a in arguments]), parts)
    assert not [*tmp_path.iterdir()]
