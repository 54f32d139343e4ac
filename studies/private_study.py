"""Accuracy against epsilon, and against trained parameters, from `fedsb compare` folders of private runs.

    python studies/private_study.py OUT.png FOLDER [FOLDER ...]

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
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator


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
    """Both figures side by side, the right one at the middle budget.

    Small points are seeds, large ones means; arms at one place stand a little apart.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    budgets = sorted({epsilon for _, epsilon in groups})
    middle = budgets[len(budgets) // 2]
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    for at, arm in enumerate(arms):
        look = {"color": f"C{at}", "marker": "osD^vPX*<>"[at % 10]}
        beside = 1.025 ** (at - (len(arms) - 1) / 2)
        runs = {e * beside: groups[arm, e] for e in budgets if (arm, e) in groups}
        _points(left, runs, label=arm, **look)
        if (arm, middle) in groups:
            _points(right, {groups[arm, middle][0].parameters * beside: groups[arm, middle]}, **look)
    left.set(xscale="log", xlabel="epsilon", ylabel="accuracy")
    left.set_xticks(budgets, [f"{e:g}" for e in budgets])
    left.minorticks_off()
    right.set(xscale="log", xlabel="trained parameters", title=f"epsilon {middle:g}")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    right.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.minorticks_off()
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=130)


def _points(axes: Axes, runs: dict[float, list[Score]], *, color: str, marker: str, label: str = "") -> None:
    for x, scores_there in runs.items():
        y = [score.value for score in scores_there]
        axes.plot([x] * len(y), y, color=color, marker=".", linestyle="", alpha=0.45)
    means = [mean(score.value for score in scores_there) for scores_there in runs.values()]
    axes.plot(list(runs), means, color=color, marker=marker, label=label)


if __name__ == "__main__":
    all_groups = grouped([score for folder in sys.argv[2:] for score in scores(Path(folder))])
    print(table(all_groups))
    draw(all_groups, Path(sys.argv[1]))
