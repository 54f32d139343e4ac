"""Comparisons: fair by construction, tuned without the test data, resumable."""

import datetime
import json
import math
import re
import shutil

import numpy as np
import pytest
from comparison_helpers import RATES, TWO, assert_refused, config_of, document, lasting
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import (
    changed,
    snapshot,
    timeless,
    write_config,
    write_rows,
)

from fedsb import RunConfig
from fedsb.common.child import part_of_cores
from fedsb.compare import CompareConfig, tuning
from fedsb.compare.arms import make_arms, tuning_jobs
from fedsb.compare.progress import Silent
from fedsb.compare.split import split, write_split
from fedsb.compare.tuning import Trial, best_rate
from fedsb.errors import InputError
from fedsb.runner import loop
from fedsb.tasks.rows import read_rows

# What a comparison leaves


def test_comparison_json_is_as_in_the_contract(whole):
    content = document(whole)
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [
        *(("fed-sb", 0), ("fed-sb", 1), ("fedit", 0), ("fedit", 1))
    ]
    for run in content["runs"]:
        summary = json.loads((whole / run["run"] / "summary.json").read_text())
        sent = summary["communication"]
        assert run["metric"] == "accuracy"
        assert run["value"] == summary["final"]["accuracy"]
        assert run["total_bytes"] == sum(sent[f"{what}_bytes"] for what in ("init", "upload", "download"))
    for method, row in content["summary"].items():
        values = [run["value"] for run in content["runs"] if run["method"] == method]
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["std"] == pytest.approx(np.std(values, ddof=1))
        assert row["learning_rate"] in RATES
    assert set(content["pareto"]) <= {"fed-sb", "fedit"}
    assert content["pareto"]


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
    rows = read_rows(str(world / "data" / "train.jsonl"))
    assert sorted(map(str, train + held)) == sorted(map(str, rows))


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
    section = {
        "arms": {"slow": slow},
        "learning_rates": {"fed-sb": [0.01, 1e30], "slow": [0.01, 0.02]},
        "tuning_budget": 2,
    }
    path = write_config(tmp_path / "c.yaml", {**config, "compare": section})
    arguments = ("--methods", "slow,fed-sb", "--seeds", "0", "--out", tmp_path / "out")
    status, _, err = fedsb("compare", path, *arguments)
    assert status == 1
    assert "slow: no learning rate worked: round 1: no client's update could be used" in err
    content = document(tmp_path / "out")
    assert [(line["value"] is None, line["chosen"]) for line in content["tuning"]] == [
        (False, True),
        (True, False),
    ]
    assert [run["method"] for run in content["runs"]] == ["fed-sb"]
    assert content["runs"][0]["learning_rate"] == 0.01
    assert "Failed and left out: slow" in (tmp_path / "out" / "report.html").read_text()
    assert "fed-sb" in content["baseline"]


def noting(done):
    """In place of `execute`: the names of the runs that it was to do."""

    def execute(jobs, *arguments, **named):
        done.extend(job.name for job in jobs)
        return {}

    return execute


def test_a_rate_is_chosen_by_its_mean_over_seeds(config, tmp_path, monkeypatch):
    """0.03 is best under the first seed, diverges under the third, and 0.09 has the best mean."""
    values = {"lr-0.03": [0.9, 0.9, None], "lr-0.01": [0.5, 0.5, 0.6], "lr-0.09": [0.7, 0.5, 0.8]}
    done = []

    def summary(folder):
        rate, _, seed = folder.name.partition("-seed-")
        final = values[rate][int(seed or 7) - 7]
        return {"primary_metric": "accuracy", "higher_is_better": True, "final": {"accuracy": final}}

    monkeypatch.setattr(tuning, "execute", noting(done))
    monkeypatch.setattr(tuning, "finished_summary", summary)
    settings = CompareConfig(learning_rates=[0.01, 0.03, 0.09], tuning_budget=3, tuning_seeds=3)
    arms = make_arms(RunConfig.from_dict(changed(config, compare=...)), settings, ["fed-sb"])
    (tmp_path / "tuning/fed-sb").mkdir(parents=True)
    choice = tuning.tune(tmp_path, arms, 7, settings, 1, Silent())[0]["fed-sb"]
    assert choice.learning_rate == 0.09
    assert [trial.value for trial in choice.trials] == pytest.approx([1.6 / 3, None, 2.0 / 3])
    assert len(done) == 9
    assert "fed-sb rate 0.01 seed 9" in done
    jobs = [job for trying in tuning_jobs(tmp_path, arms[0], [7, 8, 9], None) for job in trying.jobs]
    assert [job.config.seed for job in jobs] == [7, 8, 9] * 3
    assert len({job.folder for job in jobs}) == 9
    assert len({job.config.data.train for job in jobs}) == 1


def test_random_rates_lie_between_the_ends_of_each_arms_grid():
    settings = CompareConfig(learning_rates={"default": [1e-3, 1e-1], "a": [1e-2, 1.0]}, random_rates=7)
    rates, others = settings.rates("fedit", 0.1), settings.rates("a", 0.1)
    assert len(set(rates)) == 7
    assert rates == tuple(sorted(rates)) == settings.rates("fed-sb", 0.5)
    assert min(rates) >= 1e-3
    assert max(rates) <= 1e-1
    assert others == pytest.approx([10 * rate for rate in rates], rel=1e-3)
    assert CompareConfig(learning_rates=[0.1], random_rates=7).rates("fedit", 1.0) == (0.1,)


@pytest.mark.parametrize(
    ("budget", "tried", "chosen", "edge"),
    [
        (2, [0.01, 0.03], 0.03, True),
        (4, [0.01, 0.03, 0.09, 0.27], 0.09, False),
        (3, [0.01, 0.03, 0.09], 0.09, True),
    ],
)
def test_a_grid_grows_at_its_edge_within_the_budget(
    config, world, tmp_path, monkeypatch, budget, tried, chosen, edge
):
    """Runs in whose place a number is made up that is best at 0.1."""
    metric = {"primary_metric": "accuracy", "higher_is_better": True}
    done = []
    monkeypatch.setattr(tuning, "execute", noting(done))
    monkeypatch.setattr(
        tuning,
        "finished_summary",
        lambda folder: {**metric, "final": {"accuracy": -abs(math.log(float(folder.name[3:]) / 0.1))}},
    )
    settings = CompareConfig(learning_rates=RATES, tuning_budget=budget)
    arms = make_arms(RunConfig.from_dict(changed(config, compare=...)), settings, ["fed-sb"])
    (tmp_path / "tuning/fed-sb").mkdir(parents=True)
    choices, failed = tuning.tune(tmp_path, arms, 0, settings, 1, Silent())
    assert not failed
    assert [t.learning_rate for t in choices["fed-sb"].trials] == tried
    assert (choices["fed-sb"].learning_rate, choices["fed-sb"].edge) == (chosen, edge)
    record = tuning.recorded_choice(tmp_path, "fed-sb")
    assert [t.learning_rate for t in record.trials if t.beyond] == tried[2:]
    done.clear()
    assert tuning.tune(tmp_path, arms, 0, settings, 1, Silent())[0]["fed-sb"] == record
    assert done == []


def test_private_arms_try_more_rates_only_if_that_is_asked_for(config):
    private = RunConfig.from_dict(changed(config, compare=..., privacy={"unit": "client", "epsilon": 8.0}))
    assert not CompareConfig().may_grow(private, 3)
    assert CompareConfig(tuning_budget=4).may_grow(private, 3)
    assert CompareConfig().may_grow(private.model_copy(update={"privacy": None}), 3)


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


def test_an_interrupted_comparison_resumes_and_ends_the_same(world, whole, tmp_path, fedsb, monkeypatch):
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
    assert err.strip() == f"stopped; resume with: fedsb {' '.join(map(str, call))}"
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
    content = document(copy)
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [
        *(("fed-sb", 0), ("fed-sb", 1), ("fed-sb", 2), ("fedit", 0), ("fedit", 1))
    ]
    assert content["summary"]["fedit"]["difference"]["seeds"] == 2
    assert "Not every method has every seed" in (copy / "report.html").read_text()
    assert fedsb("compare", path, "--methods", "fedit,sb-w0", "--seeds", "1", "--out", copy)[0] == 0
    assert runs_done[1:] == ["lr-0.01", "lr-0.03", "seed-1"]
    content = document(copy)
    assert (content["baseline"], list(content["summary"])) == ("fedit", ["fedit", "sb-w0", "fed-sb"])
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
    content = document(copy)
    assert [t["learning_rate"] for t in content["tuning"] if t["method"] == "fedit"] == [0.01, 0.02, 0.03]
    assert content["runs"] == before["runs"]
    assert fedsb("compare", wider, *TWO, "--out", copy)[0] == 0
    assert runs_done == ["lr-0.02"], "the new choice stays"


def test_where_the_added_rate_wins_runs_at_the_old_one_are_not_mixed_in(
    copy, fedsb, runs_done, wider, monkeypatch
):
    monkeypatch.setattr(tuning, "best_rate", lambda trials, **_: 0.02)
    parts = ["runs/fedit/seed-0", "remove it to do it again", "training.learning_rate"]
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
    assert [part_of_cores(n) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [part_of_cores(n) for n in (1, 2, 8)] == [2, 2, 1]
