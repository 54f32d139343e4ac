"""The comparison's page: what it says, what it escapes, that it stands alone; names in its plot."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from comparison_runs import NAMES, write_comparison
from hypothesis import given
from hypothesis import strategies as st
from test_report import EVIL, Outline

from fedsb.compare.page import comparison_page
from fedsb.compare.page.equal import equal_limits
from fedsb.compare.page.front import log_ticks
from fedsb.compare.page.labels import Box, Spot, place
from fedsb.compare.page.load import load_comparison
from fedsb.compare.page.tables import change, value
from fedsb.errors import InputError
from fedsb.report import facts

pytestmark = pytest.mark.plots


def edit(folder: Path, **changes: Any) -> Path:
    file = folder / "comparison.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def words(folder: Path) -> str:
    return Outline(comparison_page(folder)).text


def test_leads_with_what_was_compared_and_how(tmp_path: Path) -> None:
    text = words(write_comparison(tmp_path / "c", methods=3))
    assert "fed-sb, fedit and ffa-lora compared" in text
    assert "Accuracy of 3 methods on test.jsonl, with bert-tiny fine-tuned on train.jsonl" in text
    assert "chosen on 800 training rows held out for that (seed 0); the test data chose nothing" in text
    assert "Not dominated, no other method being both better and cheaper: fed-sb and ffa-lora." in text
    assert "learning rate of fed-sb and ffa-lora is the smallest or largest that was tried" in text


def test_says_what_private_runs_may_claim_and_which_stopped_early(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=2, seeds=2)
    assert "private" not in words(folder)
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    runs[1]["privacy"] = {"stopped_early": True}
    runs[2]["privacy"] = {"stopped_early": False}
    said = words(edit(folder, runs=runs, privacy="Each run alone is differentially private."))
    assert "Each run alone is differentially private." in said
    assert "Stopped early, the privacy budget used up: fed-sb seed 1; less was trained there." in said


@pytest.mark.parametrize(
    ("federation", "unequal"), [({"server": {"momentum": 0.5}}, False), ({"clients_per_round": 2}, True)]
)
def test_a_budget_that_is_not_the_same_is_said_and_another_rule_is_none(
    tmp_path: Path, federation: dict[str, Any], unequal: bool
) -> None:
    folder = write_comparison(tmp_path / "c", methods=2, seeds=1)
    file = folder / "runs/fedit/seed-0/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["federation"] = {**config.get("federation", {}), **federation}
    file.write_text(yaml.safe_dump(config))
    assert ("partition, batches or budget are not the same" in words(folder)) is unequal


def test_one_line_per_method_in_the_table(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=2)
    row = json.loads((folder / "comparison.json").read_text())["summary"]["fedit"]
    apart = row["difference"]
    said = f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} %"
    differs = f"{100 * apart['mean']:+.2f} ± {100 * apart['std']:.2f} points".replace("-", "−")
    assert f"fedit {said} {differs} ≈ 1.48 MB 35.4 MB 59 MB 0.005 3" in words(folder)
    assert "0.00167 (edge) 3 ●" in words(folder)


def test_a_method_dominates_only_where_the_seeds_show_it(tmp_path: Path) -> None:
    folder = edit(write_comparison(tmp_path / "c"), pareto=["fed-sb"], better_than={"fed-sb": ["fedit"]})
    said = "fed-sb has the best mean and the least traffic, and over these seeds cannot be told apart from"
    assert f"{said} ffa-lora in accuracy." in words(folder)
    edit(folder, better_than={"fed-sb": ["fedit", "ffa-lora"]})
    assert "fed-sb dominates: no other method is better or cheaper, beyond the spread" in words(folder)


def test_scores_at_equal_bytes_and_rounds(tmp_path: Path) -> None:
    """The second method sends twice as much a round, and does two rounds less."""
    folder = write_comparison(tmp_path / "c", methods=2, seeds=1, rounds=5)
    file = folder / "runs/fedit/seed-0/metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()][:4]
    for line in lines:
        line["upload_bytes"] *= 2
        line["download_bytes"] *= 2
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = (load_comparison(folder).folders(name)[0] for name in ("fed-sb", "fedit"))
    bytes_, rounds = equal_limits(load_comparison(folder))
    most = min(facts.total_bytes(first), facts.total_bytes(second))
    spent = facts.running_total(second)
    reached = max(at for at in spent if spent[at] <= most)
    assert reached > 0
    assert bytes_.mean_of(load_comparison(folder), "fedit") == dict(facts.curve(second, "accuracy"))[reached]
    assert rounds.title == "after 3 rounds"
    assert rounds.mean_of(load_comparison(folder), "fed-sb") == dict(facts.curve(first, "accuracy"))[3]


def test_one_seed_and_one_method_still_make_a_page(tmp_path: Path) -> None:
    text = words(write_comparison(tmp_path / "c", methods=1, seeds=1, rounds=1))
    assert "fed-sb, over seeds" in text
    assert "Seed by seed" not in text
    assert "± " not in text.split("sd: sample")[0].split("Result")[1].replace("mean ± sd", "")


def test_without_a_non_dominated_method_there_are_points_and_no_line(tmp_path: Path) -> None:
    folder = edit(write_comparison(tmp_path / "c"), pareto=[])
    assert "Scatter plot, Accuracy by traffic. fed-sb:" in comparison_page(folder)
    assert "MB, not dominated." not in comparison_page(folder)


def test_a_value_that_is_not_known_is_a_dash_and_no_point(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=2)
    found = json.loads((folder / "comparison.json").read_text())
    unknown = {"mean": None, "std": None, "difference": {"mean": None, "std": None, "seeds": 3}}
    found["summary"]["fedit"] |= unknown
    for run in found["runs"][3:]:
        run["value"] = None
    text = words(edit(folder, **found))
    assert "fedit — — 1.48 MB" in text


@pytest.mark.parametrize("methods", [2, 6, 11])
def test_all_names_are_in_the_plot_and_every_plot_has_a_text(tmp_path: Path, methods: int) -> None:
    page = comparison_page(write_comparison(tmp_path / "c", methods=methods))
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert all(f">{name}</text>" in svg for name in NAMES[:methods])
    images = [attrs for _, attrs in Outline(page).tags if attrs.get("role") == "img"]
    assert len(images) == 2
    assert all(name in str(images[0]["aria-label"]) for name in NAMES[:methods])


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=2, names=[EVIL, f"b{EVIL}$x_$"])
    found = json.loads((folder / "comparison.json").read_text())
    failed = [{"run": EVIL, "problem": EVIL}]
    tuning = [{**line, "problem": EVIL} for line in found["tuning"]]
    for config in [folder / "config.yaml", *folder.glob("runs/*/*/config.yaml")]:
        config.write_text(config.read_text().replace("bert-tiny", EVIL).replace("dirichlet", EVIL))
    edit(folder, failed=failed, tuning=tuning, metric=EVIL, split={"validation": EVIL, "seed": EVIL})
    page = comparison_page(folder)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20
    Outline(page)


def test_needs_nothing_from_outside_and_links_only_into_its_folder(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=2)
    found = json.loads((folder / "comparison.json").read_text())
    for run in found["tuning"]:
        run["run"] = "javascript:alert(1)//http://x"
    page = comparison_page(edit(folder, **found))
    assert "default-src 'none'" in page
    assert "@import" not in page
    links = []
    for tag, attrs in Outline(page).tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        links += [str(attrs["href"])] if "href" in attrs else []
    assert "runs/fed-sb/seed-0/config.yaml" in links
    assert "runs/fedit/seed-2/report.html" in links
    assert not [link for link in links if ":" in link or link.startswith("/")]


def test_ids_are_unique_and_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=6)
    page = comparison_page(folder)
    used = re.findall(r'\bid="([^"]*)"', page)
    assert len(used) == len(set(used))
    assert page == comparison_page(folder)


def test_a_folder_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a comparison"):
        comparison_page(tmp_path)


def test_values_and_changes_as_people_read_them() -> None:
    assert value("accuracy", 0.83454, 0.0059).replace("\u202f", " ") == "83.45 ± 0.59 %"
    assert value("perplexity", 2.97, None) == "2.97"
    assert change("accuracy", -0.0031, 0.002).replace("\u202f", " ") == "−0.31 ± 0.20 points"
    assert change("loss", 0.0123, 0.004) == "+0.0123 ± 0.004"
    assert change("loss", None, None) == "—"


# Names beside points


def overlap(a: Box, b: Box) -> bool:
    return min(a.right, b.right) > max(a.left, b.left) and min(a.high, b.high) > max(a.low, b.low)


def spot(x: float, y: float, width: float = 60.0) -> Spot:
    return Spot(x, y, width, 15.0, (Box(x - 6, y - 6, x + 6, y + 6),))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8, unique=True))
def test_names_overlap_neither_each_other_nor_a_point(cells: list[tuple[int, int]]) -> None:
    spots = [spot(70.0 * x, 40.0 * y) for x, y in cells]
    shifts = place(spots, Box(0, 0, 700, 400))
    names = [
        Box(s.x + dx - 30, s.y + dy - 7.5, s.x + dx + 30, s.y + dy + 7.5)
        for s, (dx, dy) in zip(spots, shifts, strict=True)
    ]
    assert not [pair for pair in itertools.combinations(names, 2) if overlap(*pair)]
    assert not [1 for name in names for s in spots if overlap(name, s.taken[0])]
    assert all(n.left >= 0 and n.right <= 700 and n.low >= 0 and n.high <= 400 for n in names)


def test_a_lone_name_stands_to_the_right() -> None:
    ((dx, dy),) = place([spot(100, 100)], Box(0, 0, 400, 400))
    assert dx > 30
    assert abs(dy) < 1


@given(st.floats(1, 1e12), st.floats(1.05, 1e6))
def test_there_are_some_ticks_on_every_logarithmic_axis(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)
    assert 1 <= len(found) <= 7
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in found)
    assert found == sorted(found)
