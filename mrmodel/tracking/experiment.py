"""Connects to MLflow: a server, or a SQLite file below ``.mrmodel/``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from mrmodel.files import one_at_a_time

ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"


def prepare_mlflow() -> None:
    """Import MLflow without its telemetry, progress bars and verbose logs."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.tracking  # noqa: F401

    # The import sets log levels, and creating the schema logs every step.
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def open_experiment(name: str, state: Path) -> tuple[Any, str]:
    """A client, and the id of the experiment called `name`, which is created if missing.

    Args:
        name: of the experiment.
        state: folder of the database and artifacts where no server is configured (``.mrmodel``).
    """
    prepare_mlflow()
    from mlflow.tracking import MlflowClient

    if os.environ.get(ADDRESS_VARIABLE):
        client = MlflowClient()
        return client, _experiment(client, name, None)
    # Two stages that create the database at once would both create its tables.
    with one_at_a_time(state / "mlflow.lock"):
        client = MlflowClient(f"sqlite:///{(state / 'mlflow.db').resolve()}")
        return client, _experiment(client, name, (state / "mlartifacts").resolve().as_uri())


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # Another process created it in between.
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)
