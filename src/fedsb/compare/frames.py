"""comparison.json as pandas frames, for programs and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsb.runner.result import history_of

if TYPE_CHECKING:
    from pandas import DataFrame


def summary_frame(document: Mapping[str, Any]) -> DataFrame:
    """See `Comparison.summary`."""
    from pandas import DataFrame

    return DataFrame([_summary_line(name, row) for name, row in document["summary"].items()])


def _summary_line(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (row["difference"]["interval"] or (None, None))[:2]
    kept = ("mean", "std", "seeds", "bytes_per_round", "total_bytes", "learning_rate")
    return {
        "method": name,
        **{key: row[key] for key in kept},
        "difference": row["difference"]["mean"],
        "low": low,
        "high": high,
        "separable": row["difference"]["separable"],
    }


def runs_frame(document: Mapping[str, Any]) -> DataFrame:
    """See `Comparison.runs`."""
    from pandas import DataFrame

    kept = ("method", "seed", "value", "learning_rate", "init_bytes", "total_bytes", "seconds", "run")
    return DataFrame([{key: run[key] for key in kept} | run["metrics"] for run in document["runs"]])


def history_frame(document: Mapping[str, Any], folder: Path) -> DataFrame:
    """See `Comparison.history`."""
    from pandas import DataFrame, concat

    frames = []
    for run in document["runs"]:
        history = history_of(folder / run["run"])
        history.insert(0, "method", run["method"])
        history.insert(1, "seed", run["seed"])
        frames.append(history)
    return concat(frames, ignore_index=True) if frames else DataFrame()
