"""Accuracy against epsilon, and against trained parameters, from `fedsb compare` folders of private runs.

    python benchmarks/private_study.py OUT.png FOLDER [FOLDER ...]

Each folder is a comparison under one budget; together they are the figures 4 and 5 of the Fed-SB paper (arXiv
2502.15436). Prints the table too: mean and sample standard deviation over the seeds, by arm and epsilon.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import matplotlib.pyplot as plt


class Score(NamedTuple):
    """One run."""

    arm: str
    epsilon: float
    parameters: int
    value: float
    learning_rate: float


Groups = dict[tuple[str, float], list[Score]]


def scores(folder: Path) -> list[Score]:
    """Every finished run of the comparison, by the epsilon it was given."""
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    return [_score(folder, run) for run in runs]


def _score(folder: Path, run: dict[str, Any]) -> Score:
    summary = json.loads((folder / run["run"] / "summary.json").read_text())
    trained = summary["communication"]["upload_parameters_per_client_per_round"]
    budget = summary["privacy"]["target_epsilon"]
    return Score(run["method"], budget, trained, run["value"], run["learning_rate"])


def grouped(found: list[Score]) -> Groups:
    groups: Groups = defaultdict(list)
    for score in found:
        groups[score.arm, score.epsilon].append(score)
    return groups


def table(groups: Groups) -> str:
    """Markdown: a row per arm, a column per epsilon."""
    budgets = sorted({epsilon for _, epsilon in groups})
    arms = dict.fromkeys(arm for arm, _ in groups)
    lines = ["| arm | " + " | ".join(f"epsilon {e:g}" for e in budgets) + " | trained | rate |"]
    lines.append("|---" * (len(budgets) + 3) + "|")
    for arm in arms:
        any_of = next(runs for (a, _), runs in groups.items() if a == arm)[0]
        cells = [_cell([s.value for s in groups.get((arm, e), [])]) for e in budgets]
        lines.append(f"| {arm} | {' | '.join(cells)} | {any_of.parameters:,} | {any_of.learning_rate:g} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "not run"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def draw(groups: Groups, file: Path) -> None:
    """Both figures side by side; the right one at the middle budget."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    budgets = sorted({epsilon for _, epsilon in groups})
    middle = budgets[len(budgets) // 2]
    for at, arm in enumerate(dict.fromkeys(arm for arm, _ in groups)):
        look = {"color": f"C{at}", "marker": "osD^vPX*<>"[at % 10], "capsize": 3}
        here = [e for e in budgets if (arm, e) in groups]
        left.errorbar(here, *_spread([groups[arm, e] for e in here]), label=arm, **look)
        if (arm, middle) in groups:
            runs = groups[arm, middle]
            right.errorbar([runs[0].parameters], *_spread([runs]), label=arm, linestyle="", **look)
    left.set(xscale="log", xticks=budgets, xticklabels=[f"{e:g}" for e in budgets], xlabel="epsilon")
    right.set(xscale="log", xlabel="trained parameters", title=f"epsilon {middle:g}")
    left.set_ylabel("accuracy")
    left.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def _spread(columns: list[list[Score]]) -> tuple[list[float], list[float]]:
    values = [[s.value for s in column] for column in columns]
    return [mean(v) for v in values], [stdev(v) if len(v) > 1 else 0.0 for v in values]


if __name__ == "__main__":
    all_groups = grouped([score for folder in sys.argv[2:] for score in scores(Path(folder))])
    print(table(all_groups))
    draw(all_groups, Path(sys.argv[1]))
