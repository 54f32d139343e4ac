"""Comparisons: fair by construction, tuned without the test data, resumable, refused if wrong."""

import datetime
import io
import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from run_helpers import (
    changed,
    classification_config,
    main_status,
    snapshot,
    timeless,
    tiny_bert,
    write_config,
    write_data,
    write_rows,
)
from safetensors.torch import load_file, save_file

from fedsb import RunConfig
from fedsb.cli.compare import LiveBars, PlainLines, how_to_go_on
from fedsb.common import files
from fedsb.common.child import threads
from fedsb.compare import CompareConfig, compare, tuning
from fedsb.compare.config import settings_from_dict
from fedsb.compare.results import (
    Point,
    collect,
    difference,
    middle,
    non_dominated,
    pareto,
    privacy_sentence,
    spread,
)
from fedsb.compare.split import split, write_split
from fedsb.compare.tuning import Trial, best_rate
from fedsb.errors import InputError
from fedsb.runner import loop
from fedsb.tasks.rows import read_rows

RATES = [0.01, 0.03]
TWO = ("--methods", "fed-sb,fedit", "--seeds", "0,1")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=48, test=12)
    config = classification_config(
        folder / "bert",
        folder / "data",
        federation__rounds=2,
        federation__clients_per_round=2,
        method__init__head_warmup=None,
        method__init__samples=12,
    )
    config["compare"] = {"arms": {"fedit": {"method.rank": 2}}, "learning_rates": RATES, "validation": 0.25}
    write_config(folder / "good.yaml", config)
    return folder


@pytest.fixture(scope="module")
def config(world):
    return yaml.safe_load((world / "good.yaml").read_text())


@pytest.fixture(scope="module")
def whole(world):
    """Two methods, two seeds, two rates: four tuning runs and four others."""
    with pytest.MonkeyPatch.context() as patch:
        assert main_status(patch, "compare", world / "good.yaml", *TWO, "--out", world / "whole") == 0
    return world / "whole"


@pytest.fixture
def copy(whole, tmp_path):
    """As if it had been made there: tuning runs name the split's files by their whole path."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    for file in folder.glob("tuning/*/*/config.yaml"):
        file.write_text(file.read_text().replace(str(whole), str(folder)))
    return folder


@pytest.fixture
def fedsb(monkeypatch, capsys):
    """Call the command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        status = main_status(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def runs_done(monkeypatch):
    """The folders of runs done from here on, in this process."""
    done, run = [], loop.run

    def noted(config, out, **options):
        done.append(out.name)
        return run(config, out, **options)

    monkeypatch.setattr(loop, "run", noted)
    return done


def document(folder):
    return json.loads((folder / "comparison.json").read_text())


def lasting(folder):
    """comparison.json without wall-clock times."""
    found = document(folder)
    for run in found["runs"]:
        del run["seconds"]
    return found


def config_of(folder):
    return RunConfig.from_yaml(folder / "config.yaml")


# What a comparison leaves


def test_comparison_json_is_as_in_the_contract(whole):
    found = document(whole)
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [
        *(("fed-sb", 0), ("fed-sb", 1), ("fedit", 0), ("fedit", 1))
    ]
    for run in found["runs"]:
        summary = json.loads((whole / run["run"] / "summary.json").read_text())
        sent = summary["communication"]
        assert run["metric"] == "accuracy"
        assert run["value"] == summary["final"]["accuracy"]
        assert run["total_bytes"] == sum(sent[f"{what}_bytes"] for what in ("init", "upload", "download"))
    for method, row in found["summary"].items():
        values = [run["value"] for run in found["runs"] if run["method"] == method]
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["std"] == pytest.approx(np.std(values, ddof=1))
        assert row["learning_rate"] in RATES
    assert set(found["pareto"]) <= {"fed-sb", "fedit"}
    assert found["pareto"]


def test_bytes_per_round_are_of_one_client_up_and_down(whole):
    row = document(whole)["summary"]["fedit"]
    sent = json.loads((whole / "runs/fedit/seed-0/summary.json").read_text())["communication"]
    assert row["bytes_per_round"] == (sent["upload_bytes"] + sent["download_bytes"]) / 2 / 2


def test_every_link_of_the_page_leads_to_a_file(whole):
    links = re.findall(r'<a href="([^"]*)"', (whole / "report.html").read_text())
    assert len(links) == 4 * 2 + 4
    assert all((whole / link).is_file() for link in links)


@pytest.mark.parametrize("seed", [0, 1])
def test_under_one_seed_all_methods_have_the_same_partition_and_cohorts(whole, seed):
    one, other = (whole / "runs" / method / f"seed-{seed}" for method in ("fed-sb", "fedit"))
    assert (one / "partition.json").read_bytes() == (other / "partition.json").read_bytes()
    cohorts = [[sorted(line["clients"]) for line in timeless(folder)] for folder in (one, other)]
    assert cohorts[0] == cohorts[1]
    assert len(cohorts[0][1]) == 2


def test_seeds_differ_in_their_partition(whole):
    files = {(whole / f"runs/fed-sb/seed-{seed}/partition.json").read_bytes() for seed in (0, 1)}
    assert len(files) == 2


def test_arms_have_their_settings_and_the_chosen_rate(whole):
    chosen = {row["method"]: row["learning_rate"] for row in document(whole)["tuning"] if row["chosen"]}
    for method, rank in (("fed-sb", 4), ("fedit", 2)):
        config = config_of(whole / f"runs/{method}/seed-1")
        assert (config.method.name, config.method.rank) == (method, rank)
        assert config.training.learning_rate == chosen[method]


# Tuning


def test_tuning_runs_know_the_split_s_files_and_no_others(world, whole):
    folders = sorted((whole / "tuning").glob("*/lr-*"))
    assert len(folders) == 4
    for folder in folders:
        config = config_of(folder)
        assert config.data.train == str(whole / "tuning" / "train.jsonl")
        assert config.data.test == str(whole / "tuning" / "validation.jsonl")
        assert "test.jsonl" not in (folder / "config.yaml").read_text()
        assert config.seed == 0


def test_the_split_is_of_the_training_rows_and_of_nothing_else(world, whole):
    train, held = (read_rows(str(whole / "tuning" / f"{name}.jsonl")) for name in ("train", "validation"))
    assert (len(train), len(held)) == (36, 12)
    given = read_rows(str(world / "data" / "train.jsonl"))
    assert sorted(map(str, train + held)) == sorted(map(str, given))


def test_other_test_labels_do_not_change_what_was_tuned(world, whole, config, tmp_path, fedsb):
    turn = {"pos": "neg", "neg": "flat", "flat": "pos"}
    rows = [{**row, "label": turn[row["label"]]} for row in read_rows(str(world / "data" / "test.jsonl"))]
    write_rows(tmp_path / "turned.jsonl", rows)
    path = write_config(tmp_path / "c.yaml", changed(config, data__test=str(tmp_path / "turned.jsonl")))
    arguments = ("--methods", "fed-sb", "--seeds", "0", "--out", tmp_path / "out")
    assert fedsb("compare", path, *arguments)[0] == 0
    mine, before = document(tmp_path / "out"), document(whole)
    assert mine["tuning"] == [line for line in before["tuning"] if line["method"] == "fed-sb"]
    assert mine["runs"][0]["value"] != before["runs"][0]["value"]


def trials(*pairs):
    return [Trial(rate, value, "", None) for rate, value in pairs]


@pytest.mark.parametrize(
    ("pairs", "higher", "best"),
    [
        ([(1, 0.5), (2, 0.7), (3, 0.6)], True, 2),
        ([(1, 0.5), (2, 0.7), (3, 0.6)], False, 1),
        ([(3, 0.7), (1, 0.7), (2, 0.7)], True, 1),
        ([(1, 0.2), (3, 0.1), (2, 0.1)], False, 2),
        ([(1, None), (2, 0.1), (3, float("nan"))], True, 2),
        ([(1, None), (2, math.inf)], True, None),
    ],
)
def test_the_best_rate(pairs, higher, best):
    assert best_rate(trials(*pairs), higher_is_better=higher) == best


def test_a_rate_that_diverges_loses_and_an_arm_without_a_rate_fails(world, config, tmp_path, fedsb):
    slow = {"method.name": "fedit", "federation.client_timeout_seconds": 1e-6}
    section = {"arms": {"slow": slow}, "learning_rates": {"fed-sb": [0.01, 1e30], "slow": [0.01, 0.02]}}
    path = write_config(tmp_path / "c.yaml", {**config, "compare": section})
    arguments = ("--methods", "slow,fed-sb", "--seeds", "0", "--out", tmp_path / "out")
    status, _, err = fedsb("compare", path, *arguments)
    assert status == 1
    assert "slow: no learning rate worked: round 1: no client's update could be used" in err
    found = document(tmp_path / "out")
    assert [(line["value"] is None, line["chosen"]) for line in found["tuning"]] == [
        (False, True),
        (True, False),
    ]
    assert [run["method"] for run in found["runs"]] == ["fed-sb"]
    assert found["runs"][0]["learning_rate"] == 0.01
    assert "Failed and left out: slow" in (tmp_path / "out" / "report.html").read_text()
    assert "fed-sb" in found["baseline"]


def test_the_default_grid_and_the_forms_of_a_grid():
    assert CompareConfig().rates("a", 0.003) == (0.001, 0.003, 0.009)
    assert CompareConfig().rates("a", 5e-3) == (0.001667, 0.005, 0.015)
    for given_ in (0.1, [0.1], {"a": 0.1}, {"default": [0.1], "b": [1, 2]}):
        assert CompareConfig(learning_rates=given_).rates("a", 5.0) == (0.1,)
    assert CompareConfig(learning_rates={"a": [3, 1]}).rates("a", 5.0) == (1.0, 3.0)
    assert CompareConfig(learning_rates={"a": None}).rates("a", 3.0) == (1.0, 3.0, 9.0)


# The split


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=60), st.integers(0, 99), st.floats(0.01, 0.5))
def test_a_split_takes_each_row_once_and_leaves_each_label_a_row(labels, seed, share):
    size = max(1, round(share * len(labels)))
    possible = len(labels) - len(set(labels))
    if size > min(possible, len(labels) - 1):
        with pytest.raises(InputError, match=r"compare\.validation: expected at most"):
            split(len(labels), labels, share, 1, seed)
        return
    train, held = split(len(labels), labels, share, 1, seed)
    assert sorted(train + held) == list(range(len(labels)))
    assert len(held) == size
    assert {labels[i] for i in train} == set(labels)
    assert (train, held) == split(len(labels), labels, share, 1, seed)


def test_rows_keep_their_columns_and_types_in_the_split(tmp_path):
    row = {"a": 1, "b": 1.0, "c": True, "d": "ü\ud800", "e": None, "f": float("nan"), "g": [1, {"h": 2}]}
    day = {"day": datetime.date(2026, 1, 2)}
    write_split(tmp_path / "split", [{**row, **day}], [row], seed=0)
    (back,) = read_rows(str(tmp_path / "split" / "train.jsonl"))
    assert back == {**row, "f": None, "day": "2026-01-02"}
    assert [type(v) for v in back.values()][:4] == [int, float, bool, str]


# Going on


def test_an_interrupted_comparison_goes_on_and_ends_the_same(world, whole, tmp_path, fedsb, monkeypatch):
    """Stopped in the middle of the sixth run: after its first round, with two runs to come."""
    saves, save = [], loop.save_checkpoint

    def interrupted(folder, saved):
        save(folder, saved)
        saves.append(folder)
        if len(saves) == 5 * 3 + 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    call = ("compare", world / "good.yaml", *TWO, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", interrupted)
        status, _, err = fedsb(*call)
    assert status == 130
    assert err.strip() == f"stopped; go on with: fedsb {' '.join(map(str, call))}"
    assert not (out / "comparison.json").exists()
    done = {path.parent: snapshot(path.parent) for path in out.glob("*/*/*/summary.json")}
    assert len(done) == 5
    cut = timeless(out / "runs/fedit/seed-0")
    assert fedsb(*call)[0] == 0
    assert all(snapshot(folder) == files for folder, files in done.items())
    assert timeless(out / "runs/fedit/seed-0")[: len(cut)] == cut
    assert lasting(out) == lasting(whole)


def test_the_same_command_again_repeats_no_run(world, copy, fedsb, runs_done):
    before = {k: v for k, v in snapshot(copy).items() if "/" in k}
    (copy / "comparison.json").unlink()
    assert fedsb("compare", world / "good.yaml", *TWO, "--out", copy)[0] == 0
    assert runs_done == []
    assert {k: v for k, v in snapshot(copy).items() if "/" in k} == before
    assert (copy / "comparison.json").is_file()


def test_seeds_and_variants_can_be_added_and_nothing_is_lost(config, copy, fedsb, runs_done, tmp_path):
    section = config["compare"]
    new = {"sb-w0": {"method.name": "fed-sb", "method.init.kind": "weights"}}
    more = {**section, "arms": {**section["arms"], **new}, "learning_rates": RATES}
    path = write_config(tmp_path / "more.yaml", {**config, "compare": more})
    assert fedsb("compare", path, "--methods", "fed-sb", "--seeds", "2", "--out", copy)[0] == 0
    assert runs_done == ["seed-2"]
    found = document(copy)
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [
        *(("fed-sb", 0), ("fed-sb", 1), ("fed-sb", 2), ("fedit", 0), ("fedit", 1))
    ]
    assert found["summary"]["fedit"]["difference"]["seeds"] == 2
    assert "Not every method has every seed" in (copy / "report.html").read_text()
    assert fedsb("compare", path, "--methods", "fedit,sb-w0", "--seeds", "1", "--out", copy)[0] == 0
    assert runs_done[1:] == ["lr-0.01", "lr-0.03", "seed-1"]
    found = document(copy)
    assert (found["baseline"], list(found["summary"])) == ("fedit", ["fedit", "sb-w0", "fed-sb"])
    assert config_of(copy / "runs/sb-w0/seed-1").method.init.kind == "weights"


@pytest.fixture
def wider(config, tmp_path):
    """The same comparison, with one more rate for FedIT."""
    rates = {"default": RATES, "fedit": [0.02, *RATES]}
    return write_config(tmp_path / "wider.yaml", changed(config, compare__learning_rates=rates))


def test_rates_can_be_added_and_only_they_are_tried(copy, fedsb, runs_done, wider, monkeypatch):
    before = document(copy)
    chosen = before["summary"]["fedit"]["learning_rate"]
    monkeypatch.setattr(tuning, "best_rate", lambda trials, **_: chosen)
    assert fedsb("compare", wider, *TWO, "--out", copy)[0] == 0
    assert runs_done == ["lr-0.02"]
    found = document(copy)
    assert [t["learning_rate"] for t in found["tuning"] if t["method"] == "fedit"] == [0.01, 0.02, 0.03]
    assert found["runs"] == before["runs"]
    assert fedsb("compare", wider, *TWO, "--out", copy)[0] == 0
    assert runs_done == ["lr-0.02"], "the new choice stays"


def test_where_the_added_rate_wins_runs_at_the_old_one_are_not_mixed_in(
    copy, fedsb, runs_done, wider, monkeypatch
):
    monkeypatch.setattr(tuning, "best_rate", lambda trials, **_: 0.02)
    parts = ["runs/fedit/seed-0", "remove it to do it anew", "training.learning_rate"]
    assert_refused(fedsb("compare", wider, *TWO, "--out", copy), parts)
    shutil.rmtree(copy / "runs/fedit")
    assert fedsb("compare", wider, *TWO, "--out", copy)[0] == 0
    assert runs_done == ["lr-0.02", "seed-0", "seed-1"]
    assert config_of(copy / "runs/fedit/seed-0").training.learning_rate == 0.02


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"training__batch_size": 5}, ["training.batch_size: 10 -> 5"]),
        ({"compare__validation": 0.5}, ["compare.validation: 0.25 -> 0.5"]),
        ({"compare__arms": {"fedit": {"method.rank": 3}}}, ["compare.arms.fedit", "2", "3"]),
        ({"compare__learning_rates": [0.5]}, ["compare.learning_rates.default", "0.5"]),
        (
            {"compare__learning_rates": {"default": RATES, "fedit": [1, 2]}},
            ["tuned fedit over 0.01, 0.03", "1, 2"],
        ),
        ({"compare__arms": {"fed-sb": {"method.rank": 3}}}, ["another config", "method.rank: 4 -> 3"]),
    ],
)
def test_another_config_in_a_taken_folder_is_refused(config, copy, tmp_path, fedsb, change, parts):
    before = snapshot(copy)
    path = write_config(tmp_path / "other.yaml", changed(config, **change))
    assert_refused(fedsb("compare", path, *TWO, "--out", copy), ["--out", "another folder", *parts])
    assert snapshot(copy) == before


def test_an_arm_that_was_not_tried_can_change_in_a_taken_folder(config, copy, tmp_path, fedsb, runs_done):
    def call(rank, rates, methods):
        settings = {
            "compare__arms": {
                **config["compare"]["arms"],
                "later": {"method.name": "fedit", "method.rank": rank},
            },
            "compare__learning_rates": {"default": RATES, "later": rates},
        }
        path = write_config(tmp_path / "later.yaml", changed(config, **settings))
        return fedsb("compare", path, "--methods", methods, "--seeds", "0", "--out", copy)

    assert call(2, [0.01, 0.02], "fedit")[0] == 0
    assert call(3, [0.02], "fedit")[0] == 0
    assert runs_done == []
    assert call(3, [0.02], "fedit,later")[0] == 0
    assert config_of(copy / "runs/later/seed-0").method.rank == 3
    assert_refused(call(2, [0.02], "fedit,later"), ["--out", "compare.arms.later"])


def test_several_at_a_time_give_the_same_and_say_what_failed(world, config, tmp_path, fedsb):
    slow = {"method.name": "fedit", "federation.client_timeout_seconds": 1e-6}
    path = write_config(
        tmp_path / "c.yaml", {**config, "compare": {"arms": {"slow": slow}, "learning_rates": 0.02}}
    )
    arguments = ("--methods", "fed-sb,slow", "--seeds", "0")
    one, two = tmp_path / "one", tmp_path / "two"
    assert fedsb("compare", path, *arguments, "--out", one)[0] == 1
    status, out, err = fedsb("compare", path, *arguments, "--jobs", "2", "--out", two)
    assert status == 1
    assert "slow seed 0: round 1: no client's update could be used (client" in err
    assert "done    fed-sb seed 0" in out
    assert lasting(one) == lasting(two)
    assert timeless(one / "runs/fed-sb/seed-0") == timeless(two / "runs/fed-sb/seed-0")


def test_threads_are_shared_among_the_jobs(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads(n) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [threads(n) for n in (1, 2, 8)] == [2, 2, 1]


# Numbers

FEW = st.sampled_from([0.0, 1.0, 2.0, 3.0])
POINTS = st.lists(st.builds(Point, FEW | st.floats(0, 1e9), FEW | st.floats(-1, 1)), max_size=12)


@given(POINTS)
def test_non_dominated_points_are_those_that_no_other_beats(points):
    def beats(a, b):
        return a.cost <= b.cost and a.quality >= b.quality and a != b

    wanted = [i for i, b in enumerate(points) if not any(beats(a, b) for a in points)]
    assert non_dominated(points) == wanted


def test_pareto_respects_which_end_is_good():
    rows = {"a": (1, 0.5), "b": (2, 0.7), "c": (3, 0.6), "d": (0, None)}
    summary = {name: {"total_bytes": cost, "mean": value} for name, (cost, value) in rows.items()}
    assert pareto(summary, higher_is_better=True) == ["a", "b"]
    assert pareto(summary, higher_is_better=False) == ["a"]


VALUES = st.dictionaries(st.integers(0, 6), st.floats(-10, 10), max_size=6)


@given(VALUES, VALUES)
def test_paired_differences_are_over_the_common_seeds(mine, first):
    common = sorted(set(mine) & set(first))
    apart = np.array([mine[seed] - first[seed] for seed in common])
    found = difference(mine, first)
    assert found["seeds"] == len(common)
    assert found["mean"] == (pytest.approx(np.mean(apart)) if len(common) else None)
    assert found["std"] == (pytest.approx(np.std(apart, ddof=1), abs=1e-9) if len(common) > 1 else None)


def test_a_value_that_is_not_known_leaves_the_mean_unknown():
    assert (middle([0.5, None]), spread([0.5, 0.7, None])) == (None, None)
    assert (middle([0.5]), spread([0.5])) == (0.5, None)
    assert difference({0: 1.0, 1: None}, {0: 0.5, 1: 0.5})["mean"] is None


def test_unfinished_runs_are_not_collected(copy):
    (copy / "runs/fedit/seed-0/summary.json").unlink()
    assert [(run["method"], run["seed"]) for run in collect(copy, ["fedit"])] == [
        *(("fedit", 1), ("fed-sb", 0), ("fed-sb", 1))
    ]


@pytest.mark.parametrize("name", ["train", "test", "weights"])
def test_runs_of_other_rows_or_weights_are_not_mixed_in(world, config, copy, tmp_path, fedsb, name):
    other = {key: tmp_path / key for key in ("data", "bert")}
    for key, folder in other.items():
        shutil.copytree(world / key, folder)
    texts = {world / key: str(folder) for key, folder in other.items()}
    for file in [world / "good.yaml", *copy.rglob("config.yaml")]:
        text = file.read_text()
        for old, new in texts.items():
            text = text.replace(str(old), new)
        (tmp_path / "good.yaml" if file == world / "good.yaml" else file).write_text(text)
    if name == "weights":
        weights = load_file(other["bert"] / "model.safetensors")
        save_file(
            {n: 2 * t for n, t in weights.items()}, other["bert"] / "model.safetensors", {"format": "pt"}
        )
    else:
        file = other["data"] / f"{name}.jsonl"
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    arguments = ("--methods", "fed-sb", "--seeds", "0,1,2", "--out", copy)
    before = snapshot(copy)
    named = {"train": "the training rows", "test": "the test rows", "weights": "the weights of the base"}
    assert_refused(fedsb("compare", tmp_path / "good.yaml", *arguments), ["started on others", named[name]])
    assert snapshot(copy) == before


def test_a_second_process_on_the_folder_is_refused(world, copy, fedsb):
    with files.alone(copy / files.LOCK, "another process"):
        before = snapshot(copy)
        status, _, err = fedsb("compare", world / "good.yaml", *TWO, "--out", copy)
        assert (status, snapshot(copy)) == (1, before)
    assert "another process works on it" in " ".join(err.split())


# Wrong input


def assert_refused(answer, parts):
    """Exit status 2 and one message on stderr that holds all the parts."""
    status, _, err = answer
    assert status == 2, err
    assert err.startswith("error:")
    assert err.count("error:") == 1
    assert "not expected" not in err
    for part in parts:
        assert part in err, f"{part!r} is not in: {err}"


ARMS = {
    "unknown method": ("fed-sb,fedsb", ["--methods", "expected one of", "'fedsb'", "Did you mean fed-sb"]),
    "an arm of the config misspelt": ("fedlt", ["--methods", "'fedlt'", "Arms of this config: fedit"]),
    "a method twice": ("fed-sb,fedit,fed-sb", ["--methods", "fed-sb is named twice"]),
    "no method": ("", ["--methods", "empty", "--methods fed-sb,fedit"]),
    "an empty item": ("fed-sb,,fedit", ["--methods", "an item is empty"]),
}
SEEDS = {
    "seeds that are no numbers": ("0,one", ["--seeds", "whole numbers", "'one'"]),
    "a fraction": ("0.5", ["--seeds", "whole numbers", "'0.5'"]),
    "a seed twice": ("0,1,0", ["--seeds", "0 is named twice"]),
    "no seed": ("", ["--seeds", "empty", "--seeds 0,1,2"]),
}
SECTIONS = {
    "unknown key": ({"learning_rate": [1]}, ["compare.learning_rate: unknown key", "learning_rates"]),
    "no section": ([1], ["compare", "expected keys", "list"]),
    "a rate of zero": ({"learning_rates": [0.0]}, ["compare.learning_rates", "greater than 0", "0.0"]),
    "an empty grid": ({"learning_rates": []}, ["compare.learning_rates.default", "at least 1"]),
    "a rate twice": ({"learning_rates": [1, 1.0]}, ["compare.learning_rates", "default has a rate twice"]),
    "rates of no arm": (
        {"learning_rates": {"fedti": [1]}},
        ["compare.learning_rates.fedti", "no such arm or method", "fedit"],
    ),
    "too much held out": ({"validation": 46}, ["compare.validation", "at most 45", "48", "46", "lower it"]),
    "one and a half rows": ({"validation": 1.5}, ["compare.validation", "whole number"]),
    "no rounds": ({"tuning_rounds": 0}, ["compare.tuning_rounds", "greater than 0"]),
    "an arm with other data": (
        {"arms": {"fed-sb": {"data.limit.train": 3}}},
        ["compare.arms", "data.limit.train", "same for every arm"],
    ),
    "an arm with another seed": ({"arms": {"fed-sb": {"seed": 3}}}, ["compare.arms", "same for every arm"]),
    "an arm without dots": ({"arms": {"fed-sb": {"method": {"rank": 3}}}}, ["dotted keys", "'method'"]),
    "an arm with an unknown key": ({"arms": {"fed-sb": {"method.rnk": 3}}}, ["compare.arms.fed-sb", "rnk"]),
    "an arm with a wrong value": ({"arms": {"fed-sb": {"method.rank": 0}}}, ["method.rank", "greater than"]),
    "an arm of an unknown method": ({"arms": {"fed-sb": {"method.name": "x"}}}, ["method.name", "'x'"]),
    "an arm named like another method": (
        {"arms": {"fed-sb": {"method.name": "fedit"}}},
        ["compare.arms.fed-sb", "named like a method", "rename"],
    ),
    "a name that is no folder": ({"arms": {"../x": {}}}, ["compare.arms", "'../x'", "letters, digits"]),
    "a rank over a layer": (
        {"arms": {"fed-sb": {"method.rank": 33}}},
        ["method.rank", "1 to 32", "found 33"],
    ),
    "settings a method cannot do": (
        {"arms": {"fedit": {"method.heads": 2}, "fed-sb": {"method.rank": 3, "method.heads": 2}}},
        ["arm fed-sb", "method.heads", "divisor of method.rank = 3"],
    ),
    "a cohort over the clients": (
        {"arms": {"fed-sb": {"federation.clients_per_round": 4}}},
        ["federation.clients_per_round", "at most 3"],
    ),
}


@pytest.mark.parametrize(
    ("methods", "seeds", "section", "parts"),
    [
        *((methods, "0", ..., parts) for methods, parts in ARMS.values()),
        *(("fed-sb", seeds, ..., parts) for seeds, parts in SEEDS.values()),
        *(("fed-sb", "0", section, parts) for section, parts in SECTIONS.values()),
    ],
    ids=[*ARMS, *SEEDS, *SECTIONS],
)
def test_wrong_input_gives_one_message_and_no_folder(config, tmp_path, fedsb, methods, seeds, section, parts):
    given_ = config if section is ... else {**config, "compare": section}
    path = write_config(tmp_path / "bad.yaml", given_)
    arguments = ("--methods", methods, "--seeds", seeds, "--out", tmp_path / "out")
    assert_refused(fedsb("compare", path, *arguments), parts)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_wrong_test_file_is_found_before_any_run(world, tmp_path, fedsb):
    wrong = ("-s", f"data.test={world / 'none.jsonl'}")
    answer = fedsb("compare", world / "good.yaml", *TWO, "--out", tmp_path / "out", *wrong)
    assert_refused(answer, ["none.jsonl", "no such file"])
    assert list(tmp_path.iterdir()) == []


PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 8.0, "privacy.delta": 1e-3}
LATER_ARMS = {
    "raw gradients": (
        PRIVATE | {"method.init.kind": "gradient"},
        ["arm later", "method.init.kind", "raw gradients"],
    ),
    "delta": (
        PRIVATE | {"privacy.delta": 0.5, "method.init.kind": "weights"},
        ["arm later", "privacy.delta", "1 / "],
    ),
    "epsilon out of reach": (
        PRIVATE
        | {"privacy.epsilon": 1e-7, "method.init.private": True, "method.init.budget_share": 0.999999}
        | {"method.init.kind": "gradient"},
        ["arm later", "privacy.epsilon", "cannot be reached"],
    ),
    "public rows": (
        {"method.init.public": "none.jsonl"},
        ["none.jsonl", "no such file"],
    ),
    "cohort": (
        {"federation.clients_per_round": 99},
        ["arm later", "federation.clients_per_round", "99"],
    ),
}


@pytest.mark.parametrize(("changes", "parts"), LATER_ARMS.values(), ids=LATER_ARMS)
def test_what_is_wrong_with_a_later_arm_is_found_before_any_run(config, tmp_path, fedsb, changes, parts):
    later = {"method.name": "fed-sb"} | changes
    section = {"arms": {"fedit": {}, "later": later}, "learning_rates": [0.01], "validation": 0.25}
    path = write_config(tmp_path / "bad.yaml", {**config, "compare": section})
    answer = fedsb("compare", path, "--methods", "fedit,later", "--seeds", "0", "--out", tmp_path / "out")
    assert_refused(answer, parts)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


CLAIM = {"unit": "example", "private": True, "epsilon": 2.9912, "delta": 1e-5, "stopped_early": False}
ALONE = (
    "Each run alone is differentially private, with epsilon 3 and delta 1e-05 for one example of a client."
)
TOGETHER = " All of them together, on the same data, spend more."
CLAIMS = {
    "none": ([None, None], None),
    "all": ([CLAIM, CLAIM], ALONE + TOGETHER),
    "some, unlike each other": (
        [None, CLAIM, CLAIM | {"epsilon": 0.9991, "unit": "client"}],
        "Of 3 runs, 2 alone are differentially private, with epsilon 1 to 3 and delta 1e-05 "
        "for one example of a client or one whole client." + TOGETHER,
    ),
    "one": ([CLAIM], ALONE),
    "noise from a seed": (
        [CLAIM | {"private": False, "epsilon": None}],
        "No run is private: the noise came from a fixed seed.",
    ),
}


@pytest.mark.parametrize(("claims", "said"), CLAIMS.values(), ids=CLAIMS)
def test_what_a_comparison_says_of_privacy(claims, said):
    assert privacy_sentence([{"privacy": claim} for claim in claims]) == said


def test_places_where_no_comparison_can_be(world, whole, tmp_path, fedsb):
    (tmp_path / "mine.txt").write_text("keep")
    call = ("compare", world / "good.yaml", *TWO, "--out")
    assert_refused(fedsb(*call, tmp_path), ["--out", "not empty"])
    assert_refused(fedsb(*call, tmp_path / "mine.txt"), ["--out", "is a file"])
    run = whole / "runs/fedit/seed-0"
    assert_refused(fedsb(*call, run), ["--out", "holds a run, not a comparison"])
    assert_refused(fedsb(*call, tmp_path / "new", "--jobs", "0"), ["--jobs", "1 or more"])
    assert snapshot(tmp_path) == {"mine.txt": b"keep"}


def test_a_run_ignores_the_section(world, config, tmp_path):
    plain = write_config(tmp_path / "plain.yaml", {k: v for k, v in config.items() if k != "compare"})
    assert RunConfig.from_yaml(world / "good.yaml") == RunConfig.from_yaml(plain)
    with pytest.raises(InputError, match="compare: unknown key"):
        RunConfig.from_dict(config)


def test_settings_come_with_overrides_and_go_into_the_folder(world, whole):
    from fedsb.compare.config import settings_from_yaml

    found = settings_from_yaml(
        world / "good.yaml", ["compare.validation=7", "compare.arms.a={method.rank: 2}"]
    )
    assert (found.validation, found.arms["a"]) == (7, {"method.rank": 2})
    kept = yaml.safe_load((whole / "config.yaml").read_text())["compare"]
    assert settings_from_dict(kept) == settings_from_yaml(world / "good.yaml")


# From Python, and on the terminal


def test_from_python_without_tuning(world, tmp_path, runs_done):
    config = RunConfig.from_yaml(world / "good.yaml", ["federation.rounds=1"])
    found = compare(config, CompareConfig(learning_rates=0.02), ["fedit"], [3], tmp_path / "out")
    assert runs_done == ["seed-3"]
    assert found.document == document(tmp_path / "out")
    assert found.document["summary"]["fedit"]["std"] is None
    assert found.document["tuning"] == []
    assert not (tmp_path / "out" / "tuning").exists()
    assert "Learning rates were given, not tuned." in (tmp_path / "out" / "report.html").read_text()


def drive(progress):
    progress.stage("checking [odd]")
    progress.begins(2)
    progress.run_begins("a seed 0")
    for share, text in (
        (0.0, "reading data"),
        (0.0, "round 1 of 2"),
        (0.25, "round 1 of 2"),
        (0.5, "round 2 of 2"),
    ):
        progress.run_at("a seed 0", share, text)
    progress.run_begins("b [x] seed 0")
    progress.run_at("b [x] seed 0", 0.5, "round 2 of 2")
    progress.run_ends("a seed 0", None)
    progress.run_ends("b [x] seed 0", "KeyError: '[/b]'")


def test_plain_lines_are_one_per_event():
    console = Console(file=io.StringIO(), soft_wrap=True)
    drive(PlainLines(console))
    assert console.file.getvalue().splitlines() == [
        "· checking [odd]",
        "· run 1 of 2: a seed 0",
        "  a seed 0: round 1 of 2",
        "  a seed 0: round 2 of 2",
        "· run 2 of 2: b [x] seed 0",
        "  b [x] seed 0: round 2 of 2",
        "done    a seed 0",
        "failed  b [x] seed 0: KeyError: '[/b]'",
    ]


def test_live_bars_count_all_runs():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with LiveBars(console) as bars:
        drive(bars)
        (left,) = bars._bars.tasks
        assert (left.completed, left.total, left.fields["text"]) == (2, 2, "2 of 2")
    assert "failed  b [x] seed 0: KeyError: '[/b]'" in console.file.getvalue()


def test_the_table_at_the_end(world, copy, fedsb):
    _, out, _ = fedsb("compare", world / "good.yaml", *TWO, "--out", copy)
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("fed-sb", "fedit"))]
    assert [row[0] for row in rows] == ["fed-sb", "fedit"]
    found = document(copy)["summary"]["fedit"]
    assert rows[1][1:4] == [f"{100 * found['mean']:.2f}", "±", f"{100 * found['std']:.2f}"]
    assert f"{100 * found['difference']['mean']:+.2f}".replace("-", "−") in rows[1]
    assert str(copy / "report.html") in out.replace("\n", "")


def test_how_to_go_on_can_be_pasted(tmp_path):
    text = how_to_go_on(tmp_path / "a b.yaml", ["x=[1, 2]"], "fed-sb", "0", tmp_path / "out", 2)
    assert text.startswith("stopped before the first run")
    assert text.endswith(
        f"'{tmp_path}/a b.yaml' --methods fed-sb --seeds 0 --out {tmp_path}/out -s 'x=[1, 2]' --jobs 2"
    )


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    from fedsb.cli.compare import comparison_folder

    monkeypatch.chdir(tmp_path)
    names = []
    for given_ in itertools.repeat(tmp_path / "x" / "sst2.yaml", 2):
        names.append(str(comparison_folder(given_)))
        (tmp_path / names[-1]).mkdir(parents=True)
    assert names == ["runs/compare-sst2", "runs/compare-sst2-2"]
    assert str(comparison_folder(tmp_path / "compare-snli.yaml")) == "runs/compare-snli"
