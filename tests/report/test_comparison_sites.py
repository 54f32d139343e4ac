"""The comparison's table of sites: means over the seeds of what each run's sites have."""

import json
from pathlib import Path

from comparison_runs import write_comparison

from fedsb.compare.page.load import load_comparison
from fedsb.compare.page.sites import sites
from fedsb.report.paper import tables_of


def score(folder: Path, method: str, seed: int, **accuracies: float) -> None:
    """Write the scores of sites into a run's last round."""
    file = folder / f"runs/{method}/seed-{seed}/metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[-1]["sites"] = {site: {"accuracy": value} for site, value in accuracies.items()}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_comparison_without_scores_of_sites_has_no_such_table(tmp_path: Path) -> None:
    assert sites(load_comparison(write_comparison(tmp_path / "c"))) == ""


def test_each_run_has_a_worst_site_of_its_own(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", methods=2, seeds=2)
    score(folder, "fed-sb", 0, **{"0": 0.5, "1": 0.9})
    score(folder, "fed-sb", 1, **{"0": 0.8, "1": 0.6})
    ((_, table),) = tables_of(sites(load_comparison(folder)))
    (row,) = table.rows
    cells = [str(cell).split()[0] for cell in row]
    assert cells[:4] == ["fed-sb", "70.0", "55.0", "30.0"]
    assert cells[5:] == ["2", "65.0", "75.0"]
