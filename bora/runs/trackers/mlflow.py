"""A run of MLflow. The package is imported only when it is used."""

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bora.config.schema import flatten
from bora.errors import UserError, first_line
from bora.runs.trackers.tracker import Start, Tracker


class MLflow(Tracker):
    """A run of MLflow. Figures logged again after a resume are in its append-only history twice."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.id = client, run_id

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())  # milliseconds
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in figures.items()])

    def _table(self, name: str, table: pd.DataFrame) -> None:
        self.client.log_table(self.id, table, f"{name}.json")

    def _artifact(self, folder: Path, files: Iterable[str]) -> None:
        for file in files:
            self.client.log_artifact(self.id, str(folder / file), str(Path("run", file).parent))

    def _close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def start_mlflow(settings: Any, start: Start) -> MLflow:
    """Begin a run in the MLflow experiment that has the group's name, with the config as its parameters."""
    # Absolute: MLflow keeps one connection for each URI.
    local = f"sqlite:///{Path('mlflow.db').resolve()}"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # instead of 7, which take four minutes
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.ERROR)  # they report every table of a new database
        client = MlflowClient(uri)
        if start.id is not None:
            client.update_run(start.id, "RUNNING")
            return MLflow(client, start.id)
        experiment = client.get_experiment_by_name(start.group)
        experiment_id = client.create_experiment(start.group) if experiment is None else experiment.experiment_id
        run_id = client.create_run(experiment_id, tags=resolve_tags(), run_name=start.name).info.run_id
        # MLflow allows few characters in a key, and a reason for dropping documents is a key.
        keys = {re.sub(r"[^\w/.\- ]+", "", key): value for key, value in flatten(start.config).items()}
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in keys.items()])
        return MLflow(client, run_id)
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger.tracking_uri={uri}: a package is missing ({error}); install it. For a local database: "
            "pip install mlflow-skinny sqlalchemy alembic"
        ) from error
    except ImportError:  # raised before MlflowException is imported
        raise
    except (MlflowException, OSError) as error:
        raise UserError(
            f"logger.tracking_uri={uri}: MLflow cannot log there ({first_line(error)}); give another, or start "
            "the server"
        ) from error
