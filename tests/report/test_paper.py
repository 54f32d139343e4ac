"""Plots and tables as files: each stands alone, with the numbers that the page shows."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from comparison_runs import write_comparison
from report_runs import CONFIG, Make, metrics
from typer.testing import CliRunner

from fedsb.cli.app import app
from fedsb.errors import InputError
from fedsb.report.canvas import Data
from fedsb.report.markup import numbers, table, texts
from fedsb.report.paper import KINDS, tables_of

pytestmark = pytest.mark.plots


def wrote(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_plot_and_table_of_a_run_is_a_file_in_every_format(make: Make, tmp_path: Path) -> None:
    run, out = make("one"), tmp_path / "paper"
    wrote(run, "--figures", out, "--format", ",".join(KINDS))
    plots = {file.stem for file in out.glob("*.svg")}
    assert {"accuracy-by-round", "loss-by-round", "traffic-of-each-round", "who-took-part"} <= plots
    tables = {file.stem for file in out.glob("*.tex")}
    assert {"table-rounds", "table-traffic-ledger"} <= tables
    names = {f"{stem}.{kind}" for stem in plots for kind in ("svg", "pdf", "png", "csv")}
    names |= {f"{stem}.{ending}" for stem in tables for ending in ("tex", "csv")}
    assert {file.name for file in out.iterdir()} == names
    starts = {"pdf": b"%PDF", "png": b"\x89PNG"}
    assert all(
        f.read_bytes().startswith(starts[f.suffix[1:]]) for f in out.iterdir() if f.suffix[1:] in starts
    )


def test_a_drawing_has_its_own_colours_title_and_legend(make: Make, tmp_path: Path) -> None:
    wrote(make("one"), "--figures", tmp_path / "paper", "--format", "svg")
    text = (tmp_path / "paper" / "loss-by-round.svg").read_text()
    ET.fromstring(text)
    assert "var(" not in text
    assert "#fe01" not in text
    assert "#0b62a8" in text
    assert "#c8500a" in text
    assert 'id="legend_1"' in text


def test_the_csv_of_a_plot_has_the_run_s_own_numbers(make: Make, tmp_path: Path) -> None:
    run = make("one")
    wrote(run, "--figures", tmp_path / "paper", "--format", "csv")
    with open(tmp_path / "paper" / "accuracy-by-round.csv", newline="") as file:
        drawn = {int(row["round"]): float(row["Accuracy by round"]) for row in csv.DictReader(file)}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert drawn == {line["round"]: line["eval"]["accuracy"] for line in lines}


def test_several_runs_have_a_folder_each(make: Make, tmp_path: Path) -> None:
    runs = [make("a"), make("b", config={**CONFIG, "seed": 1}, metrics=metrics(3))]
    out = tmp_path / "paper"
    wrote(*runs, "--out", tmp_path / "both.html", "--figures", out, "--format", "csv")
    assert {"a", "b", "accuracy-by-traffic.csv", "table-all-runs.csv"} <= {f.name for f in out.iterdir()}
    with open(out / "table-all-runs.csv", newline="") as file:
        assert [(row["run"], row["rounds"]) for row in csv.DictReader(file)] == [("a", "5"), ("b", "3")]


def test_a_comparison_has_its_page_and_files(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c")
    (folder / "report.html").unlink(missing_ok=True)
    wrote(folder, "--figures", tmp_path / "paper")
    names = {file.name for file in (tmp_path / "paper").iterdir()}
    assert {"accuracy-by-traffic.pdf", "accuracy-by-traffic.csv", "table-result.tex"} <= names
    assert "fedsb comparison" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "bmp"], "pdf, svg, png, csv, latex"),
        (["--format", ","], "found nothing"),
        (["--figures", "{file}"], "expected a folder"),
    ],
    ids=["format", "no-format", "file"],
)
def test_what_cannot_be_written_is_refused(
    make: Make, tmp_path: Path, arguments: list[str], said: str
) -> None:
    run = make("one")
    arguments = [text.replace("{file}", str(run / "config.yaml")) for text in arguments]
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, ["report", str(run), *arguments], catch_exceptions=False)


def test_tables_are_read_as_the_page_has_them() -> None:
    html = table(
        "One", [*texts("a"), *numbers("b"), *texts("c")], [["x <", "1", "y"], ["sum", "2", ""]], strong=True
    )
    rows = [["x <", "1", "y"], ["sum", "2", ""]]
    assert tables_of(html) == [("One", Data(["a", "b", "c"], rows, (False, True, False), total=True))]
