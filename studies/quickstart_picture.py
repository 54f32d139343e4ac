"""The README's picture: the quickstart's accuracy by round beside the bytes sent.

fedsb run                                                                # leaves runs/quickstart
python studies/quickstart_picture.py runs/quickstart docs/_static/quickstart.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

COLOURS = ("#4c72b0", "#dd8452")
plt.rcParams |= {"svg.hashsalt": "fedsb", "font.size": 10}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def accuracy(axes: Axes, rounds: list[dict[str, Any]]) -> None:
    values = [line["eval"]["accuracy"] for line in rounds]
    axes.plot(range(len(values)), values, marker="o", color=COLOURS[0])
    axes.annotate(f"{values[-1]:.0%}", (len(values) - 1, values[-1]), (-8, -16), textcoords="offset points")
    axes.set(xlabel="round (0: before training)", title="Accuracy on 500 test notes", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def traffic(axes: Axes, rounds: list[dict[str, Any]], start: list[dict[str, Any]]) -> None:
    """Megabytes of all clients together: the start at 0, then each round."""
    below = [0.0] * len(rounds)
    for number, (way, label) in enumerate([("up", "to the server"), ("down", "to the clients")]):
        once = sum(entry["bytes"] for entry in start if entry["direction"] == way)
        heights = [size / 1e6 for size in (once, *(line[f"{way}load_bytes"] for line in rounds[1:]))]
        axes.bar(range(len(rounds)), heights, bottom=below, color=COLOURS[number], label=label)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set(xlabel="round (0: the bases, once)", title="Traffic of all five clients, MB")
    axes.legend(frameon=False)


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    summary, rounds = json.loads((run / "summary.json").read_text()), lines_of(run)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    accuracy(left, rounds)
    traffic(right, rounds, summary["communication"]["one_time"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
