"""MLflow: a run in the store that MLFLOW_TRACKING_URI names, else in one in the run folder.

`mlflow ui --backend-store-uri sqlite:///RUN/tracking/mlflow/mlflow.db`
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from fedsb.report.tracking.tracked import PROJECT, Opening

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Unless the user has set them: nothing goes anywhere else, and a dead server does not hold the run up."""


class MlflowRun:
    def __init__(self, opening: Opening):
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        local = f"sqlite:///{opening.folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        self._id = self._resumed(opening) or self._created(opening)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))

    def _resumed(self, opening: Opening) -> str | None:
        if opening.fresh:
            return None
        runs = self._client.search_runs([self._experiment()], f"tags.fedsb = '{opening.id}'")
        for run in runs:
            self._client.update_run(run.info.run_id, status="RUNNING")
        return str(runs[0].info.run_id) if runs else None

    def _created(self, opening: Opening) -> str:
        tags = {"fedsb": opening.id}
        run = self._client.create_run(self._experiment(), tags=tags, run_name=opening.name)
        for name, value in opening.settings.items():
            self._client.log_param(run.info.run_id, name, str(value)[:500])
        return str(run.info.run_id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in numbers.items()])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
