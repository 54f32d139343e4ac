"""Metrics of a run in TensorBoard, MLflow, Weights & Biases or trackio, for those who watch there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsb.errors import InputError
from fedsb.report.tracking.mlflow import MlflowRun
from fedsb.report.tracking.tensorboard import TensorboardRun
from fedsb.report.tracking.tracked import Open, Tracked
from fedsb.report.tracking.trackio import TrackioRun
from fedsb.report.tracking.wandb import WandbRun

TRACKERS: dict[str, Open] = {
    "tensorboard": TensorboardRun,
    "mlflow": MlflowRun,
    "wandb": WandbRun,
    "trackio": TrackioRun,
}


def check_tracking(names: Sequence[str]) -> None:
    """Refuse trackers whose library is not there.

    Raises:
        InputError: with the command that installs it.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        extras = ",".join(missing)
        raise InputError(
            f"tracking: {', '.join(missing)} is not installed; pip install 'fedsb[{extras}]', or leave it out"
        )


def trackers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any]
) -> Iterator[tuple[str, Tracked]]:
    """Each by name, not yet opened, with a folder of its own under `tracking/` in the run folder."""
    return ((name, Tracked(TRACKERS[name], folder / "tracking" / name, settings)) for name in names)
