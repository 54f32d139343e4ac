"""The end of a run on the terminal: its scores, its traffic, every site's score, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsb.common.files import read_json
from fedsb.common.printable import site_name
from fedsb.report.screen import shown
from fedsb.report.units import four_places, human_bytes, plural

BESIDE = {"local": "alone", "pooled": "all rows pooled"}
MOST_SITES = 12
"""In the table after a run."""


def show_result(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """The final table, and what to do next."""
    console.print(summary_table(summary))
    if (table := sites_table(summary, site_names(folder))) is not None:
        console.print(table)
    if "scores" in summary:
        console.print(scores_table(summary["scores"], "scores of the final model"))
    left = f"adapter  {folder / 'adapter'} (a PEFT LoRA folder)", "merged"
    if "mixture" in summary:
        left = (
            f"mixture  {folder / 'mixture'} (with a loader; adapter/ is the mean of its experts)",
            "experts",
        )
    lines = (
        f"report   {folder / 'report.html'}",
        left[0],
        f"next     fedsb export {folder} --format {left[1]} --out {folder.name}-{left[1]}",
    )
    console.print("\n".join(lines), highlight=False, markup=False)


def site_names(folder: Path) -> list[str]:
    """What clients are called, by their numbers; none where they have no names."""
    file = folder / "partition.json"
    names = read_json(file).get("names", {}) if file.is_file() else {}
    return list(names.values()) if isinstance(names, dict) else []


def _privacy_row(privacy: dict[str, Any]) -> tuple[str, str, str]:
    if not privacy["private"]:
        return "privacy", "", "NONE: noise from a fixed seed"
    spent = f"{privacy['epsilon']:.3g} at {privacy['delta']:.2g}"
    if privacy["stopped_early"]:
        spent += f", budget used up after {plural(privacy['rounds'], 'round')}"
    return f"epsilon, per {shown(privacy['unit'])}", "", spent


def summary_table(summary: dict[str, Any]) -> Table:
    """Base and final metrics, traffic, time and memory."""
    title = f"{shown(summary['method'])}, {plural(summary['rounds'], 'round')}"
    table = Table(title=title, title_justify="left")
    for column in ("", "base model", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in summary["final"].items():
        style = "bold" if name == summary["primary_metric"] else ""
        before = summary["base"].get(name)
        table.add_row(shown(name.replace("_", " ")), four_places(before), four_places(value), style=style)
    table.add_section()
    sent = summary["communication"]
    table.add_row("sent once (start)", "", human_bytes(sent["init_bytes"]))
    table.add_row("sent up, all rounds", "", human_bytes(sent["upload_bytes"]))
    table.add_row("sent down, all rounds", "", human_bytes(sent["download_bytes"]))
    table.add_row("numbers per update", "", f"{sent['upload_parameters_per_client_per_round']:,}")
    if privacy := summary.get("privacy"):
        table.add_row(*_privacy_row(privacy))
    table.add_row("time", "", f"{summary['seconds']:.1f} s")
    table.add_row("peak memory", "", human_bytes(summary["peak_memory_bytes"]))
    return table


def _noise_said(sites: dict[str, Any], metric: str) -> str | None:
    """What privacy's noise does to the sites' scores; None without."""
    if (noise := sites.get("noise")) is None:
        return None
    errors = [each[metric] for each in noise["standard_errors"].values() if metric in each]
    if not errors:
        return "made of counts with noise, for privacy"
    mean = noise["standard_error_of_mean"][metric]
    return f"by noise ± {max(errors):.2g} at a site, ± {mean:.2g} in the mean"


def sites_table(summary: dict[str, Any], names: Sequence[str]) -> Table | None:
    """The primary metric at every site, beside what it is compared with; None of a run without such scores.

    Of many sites the worst alone are shown.
    """
    sites, metric = summary.get("sites"), summary["primary_metric"]
    if not sites:
        return None
    kinds = {"this run": sites["scores"], **{BESIDE[kind]: of for kind, of in sites["baselines"].items()}}
    title, caption = f"{shown(metric.replace('_', ' '))} at each site", _noise_said(sites, metric)
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for column in ("test rows", *kinds):
        table.add_column(column, justify="right")
    values = {site: scores[metric] for site, scores in sites["scores"].items() if metric in scores}
    order = sorted(values, key=values.__getitem__, reverse=not summary["higher_is_better"])
    for site in order[:MOST_SITES]:
        cells = [four_places(of.get(site, {}).get(metric)) for of in kinds.values()]
        table.add_row(shown(site_name(names, site), 40), str(sites["rows"][site]), *cells)
    if len(order) > MOST_SITES:
        table.add_row(f"{len(order) - MOST_SITES} more", "", *[""] * len(kinds))
    table.add_section()
    means = [[of[site][metric] for site in of if metric in of[site]] for of in kinds.values()]
    table.add_row("mean", "", *(four_places(fmean(of)) if of else "" for of in means), style="bold")
    return table


def scores_table(scores: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row per metric: value, 95 % interval, examples."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for column in ("value", "95 % interval", "examples"):
        table.add_column(column, justify="right")
    for name, score in scores.items():
        ends = " to ".join("-" if end is None else f"{end:.4f}" for end in (score["low"], score["high"]))
        table.add_row(shown(name.replace("_", " ")), f"{score['value']:.4f}", ends, str(score["count"]))
    return table
