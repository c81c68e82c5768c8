"""Stage runs in MLflow: parameters, figures, files, and where the code came from.

Without a server the record is a SQLite file below ``.mrmodel/``; with ``MLFLOW_TRACKING_URI`` it
goes there. ``tracking.enabled: false`` switches all of it off, import included.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mrmodel.config import TrackingSettings
from mrmodel.files import sha256_of
from mrmodel.progress import announce
from mrmodel.track.server import open_experiment

log = logging.getLogger(__name__)

# MLflow refuses a longer batch.
_BATCH = 1000
_LONGEST_TAG = 4000


class RunRecord(Protocol):
    """An open run: figures of a step, and whole files."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep `figures` as of `step`."""

    def file(self, path: Path) -> None:
        """Keep a copy of a file."""


class NoRecord:
    """What a stage gets when tracking is off."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Drop the figures."""

    def file(self, path: Path) -> None:
        """Leave the file where it is."""


class MlflowRun:
    """One open MLflow run."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send `figures` in one call; MLflow needs 30 times longer for as many single ones."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_safe(name), value, now, step) for name, value in figures.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])

    def file(self, path: Path) -> None:
        """Upload a file as an artifact."""
        self._client.log_artifact(self._run_id, str(path))


@contextmanager
def open_run(
    settings: TrackingSettings, name: str, params: Mapping[str, Any], state: Path
) -> Iterator[RunRecord]:
    """A run called `name` with `params` (nested sections become dotted names).

    It ends as FINISHED, or as FAILED when the block raises.

    Args:
        settings: the `tracking` section.
        name: stage name, e.g. ``finetune@sg_detr``.
        params: what the stage was told.
        state: folder of the default database and artifacts (``.mrmodel``).
    """
    if not settings.enabled:
        yield NoRecord()
        return
    client, experiment = open_experiment(settings.experiment, state)
    tags = {"mlflow.runName": name, "stage": name, **code_tags()}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    for key, value in flatten(params).items():
        client.log_param(run_id, key, value)
    announce("mlflow", address=_address(client.tracking_uri, experiment, run_id))
    try:
        yield MlflowRun(client, run_id)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def code_tags() -> dict[str, str]:
    """Git revision, whether and where the tree differs from it, and the digest of dvc.lock."""
    tags = {}
    revision = _git("rev-parse", "HEAD")
    if revision is not None:
        tags["git.revision"] = revision
        changed = (_git("diff", "--name-only", "HEAD") or "").split("\n")
        tags["git.dirty"] = str(changed != [""]).lower()
        if changed != [""]:
            # MLflow takes no longer value.
            tags["git.changed"] = " ".join(changed)[:_LONGEST_TAG]
    lock = Path("dvc.lock")
    if lock.exists():
        tags["dvc.lock.sha256"] = sha256_of(lock)
    return tags


def _address(server: str, experiment: str, run_id: str) -> str:
    """Page of a run; empty where no server shows it."""
    pages = f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return pages if server.startswith("http") else ""


def _safe(name: str) -> str:
    # MLflow allows letters, digits and _ - . / : and space in names.
    return name.replace("@", "_at_")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
