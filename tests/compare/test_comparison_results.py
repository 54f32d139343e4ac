"""What a comparison counts and shows: numbers, from Python, on the terminal."""

import io
import itertools
import shutil

import numpy as np
import pytest
import scipy.stats
from comparison_helpers import TWO, assert_refused, document
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from run_helpers import (
    snapshot,
)
from safetensors.torch import load_file, save_file

from fedsb import RunConfig
from fedsb.cli.compare import LiveBars, PlainLines, how_to_resume
from fedsb.common import files
from fedsb.compare import CompareConfig, compare
from fedsb.compare.intervals import paired_interval, spreads_to_show
from fedsb.compare.results import (
    Point,
    better_than,
    collect,
    difference,
    middle,
    non_dominated,
    pareto,
    spread,
)

# Numbers

FEW = st.sampled_from([0.0, 1.0, 2.0, 3.0])
POINTS = st.lists(st.builds(Point, FEW | st.floats(0, 1e9), FEW | st.floats(-1, 1)), max_size=12)


@given(POINTS)
def test_non_dominated_points_are_those_that_no_other_beats(points):
    def beats(a, b):
        return a.cost <= b.cost and a.quality >= b.quality and a != b

    expected = [i for i, b in enumerate(points) if not any(beats(a, b) for a in points)]
    assert non_dominated(points) == expected


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
    result = difference(mine, first, looked_at=2)
    assert result["seeds"] == len(common)
    assert result["mean"] == (pytest.approx(np.mean(apart)) if len(common) else None)
    assert result["std"] == (pytest.approx(np.std(apart, ddof=1), abs=1e-9) if len(common) > 1 else None)


def test_a_value_that_is_not_known_leaves_the_mean_unknown():
    assert (middle([0.5, None]), spread([0.5, 0.7, None])) == (None, None)
    assert (middle([0.5]), spread([0.5])) == (0.5, None)
    assert difference({0: 1.0, 1: None}, {0: 0.5, 1: 0.5}, looked_at=1)["mean"] is None


@pytest.mark.parametrize("looked_at", [1, 10])
def test_intervals_are_the_paired_t_test_s_as_wide_as_all_need(looked_at):
    mine, first = [0.83, 0.81, 0.85, 0.84], [0.80, 0.80, 0.82, 0.79]
    expected = scipy.stats.ttest_rel(mine, first).confidence_interval(1 - 0.05 / looked_at)
    interval = paired_interval([a - b for a, b in zip(mine, first, strict=True)], looked_at)
    assert list(interval) == pytest.approx(list(expected))
    assert interval.separable == (expected.low > 0)
    assert paired_interval([0.3, 0.3], looked_at) is None, "two seeds tell nothing apart"


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_difference_shows_from_so_many_times_its_deviation_on(seeds):
    about = np.arange(seeds) - (seeds - 1) / 2
    needed = spreads_to_show(seeds, looked_at=21) * about.std(ddof=1)
    shown = [paired_interval([*(about + needed * share)], 21).separable for share in (0.99, 1.01)]
    assert shown == [False, True]


def test_who_is_better_is_said_where_all_pairs_together_show_it():
    values = {"a": [0.50, 0.51, 0.49], "b": [0.40, 0.41, 0.39], "c": [0.45, 0.50, 0.48]}
    runs = [{"method": m, "seed": s, "value": v} for m, row in values.items() for s, v in enumerate(row)]
    assert better_than(runs, higher_is_better=True) == {"a": ["b"], "b": [], "c": []}
    assert better_than(runs, higher_is_better=False) == {"a": [], "b": ["a"], "c": []}
    two = [run for run in runs if run["seed"] < 2]
    assert not any(better_than(two, higher_is_better=True).values())


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


# From Python, and on the terminal


def test_from_python_without_tuning(world, tmp_path, runs_done):
    config = RunConfig.from_yaml(world / "good.yaml", ["federation.rounds=1"])
    comparison = compare(config, CompareConfig(learning_rates=0.02), ["fedit"], [3], tmp_path / "out")
    assert runs_done == ["seed-3"]
    assert comparison.document == document(tmp_path / "out")
    assert comparison.document["summary"]["fedit"]["std"] is None
    assert comparison.document["tuning"] == []
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


def test_one_bar_counts_tuning_and_what_follows():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    plain = Console(file=io.StringIO(), soft_wrap=True)
    with LiveBars(console) as bars:
        for progress in (bars, PlainLines(plain)):
            for begins in ((1, 2), (2,)):
                progress.begins(*begins)
                progress.run_begins(f"a {begins}")
                progress.run_ends(f"a {begins}", None)
        (left,) = bars._bars.tasks
        assert (left.completed, left.total, left.fields["text"]) == (2, 3, "2 of 3")
    assert "run 1 of 3" in plain.file.getvalue()
    assert "run 2 of 3" in plain.file.getvalue()


def test_the_table_at_the_end(world, copy, fedsb):
    _, out, _ = fedsb("compare", world / "good.yaml", *TWO, "--out", copy)
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("fed-sb", "fedit"))]
    assert [row[0] for row in rows] == ["fed-sb", "fedit"]
    summary = document(copy)["summary"]["fedit"]
    assert rows[1][1:4] == [f"{100 * summary['mean']:.2f}", "±", f"{100 * summary['std']:.2f}"]
    assert f"{100 * summary['difference']['mean']:+.2f}".replace("-", "−") in rows[1]
    assert str(copy / "report.html") in out.replace("\n", "")


def test_how_to_resume_can_be_pasted(tmp_path):
    text = how_to_resume(tmp_path / "a b.yaml", ["x=[1, 2]"], "fed-sb", "0", tmp_path / "out", 2)
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
