"""One MLflow run: parameters, metrics (also of the machine), files, revision of the code."""

from __future__ import annotations

import os
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mrmodel.config.base import flatten
from mrmodel.files import sha256_of
from mrmodel.tracking.provenance import StageInput

# MLflow's limits per batch.
_METRICS, _PARAMS = 1000, 100
_LONGEST_TAG = 4000
_LONGEST_PARAM = 6000
# It has its own digest tag, and every stage changes it.
_LOCK = "dvc.lock"
_CODE = ("mrmodel", "dvc.yaml", "params.yaml")


class MlflowRun:
    """One MLflow run; every call may raise MLflow's exceptions.

    Args:
        client: of the server.
        run_id: of the run.
        hide: removes secrets from a text.
    """

    def __init__(self, client: Any, run_id: str, hide: Callable[[str], str]) -> None:
        self._client, self.run_id, self._hide = client, run_id, hide

    def log(self, metrics: Mapping[str, float], step: int, at: int) -> None:
        """Log `metrics` in one call, 30 times faster than one call per metric."""
        from mlflow.entities import Metric

        sent = [Metric(_safe(name), value, at, step) for name, value in metrics.items()]
        for start in range(0, len(sent), _METRICS):
            self._client.log_batch(self.run_id, metrics=sent[start : start + _METRICS])

    def params(self, tree: Mapping[str, Any]) -> None:
        """Log parameters under dotted names; a value that is too long is truncated."""
        from mlflow.entities import Param

        params = [
            Param(_safe(name), self._hide(str(value))[:_LONGEST_PARAM])
            for name, value in flatten(tree).items()
        ]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        sent = [RunTag(key, self._hide(value)[:_LONGEST_TAG]) for key, value in tags.items()]
        self._client.log_batch(self.run_id, tags=sent)

    def inputs(self, inputs: Sequence[StageInput]) -> None:
        """Log the stage's inputs as MLflow datasets: path, MD5, and source URL."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        found = []
        # It warns that a local path matches two source types, which are equivalent here.
        warnings.filterwarnings("ignore", "The specified dataset source", module="mlflow")
        for one in inputs:
            try:
                source = resolve_dataset_source(self._hide(one.source))
            except MlflowException:  # A kind of remote unknown to MLflow.
                source = resolve_dataset_source(one.path)
            dataset = MetaDataset(source, name=one.path, digest=one.digest)
            tags = [InputTag("mlflow.data.context", "dependency")]
            found.append(DatasetInput(dataset._to_mlflow_entity(), tags))
        self._client.log_inputs(self.run_id, found)

    def file(self, path: Path) -> None:
        """Upload a file under its relative folder."""
        folder = None if path.is_absolute() or path.parent == Path() else path.parent.as_posix()
        self._client.log_artifact(self.run_id, str(path), folder)

    def text(self, name: str, content: str) -> None:
        """Upload a text."""
        self._client.log_text(self.run_id, self._hide(content), name)

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """Upload a table."""
        shown = {
            key: [self._hide(cell) if isinstance(cell, str) else cell for cell in cells]
            for key, cells in columns.items()
        }
        self._client.log_table(self.run_id, shown, name)

    def end(self, status: str, at: int) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status, at)


def code_tags(folder: Path = Path()) -> dict[str, str]:
    """Git revision, whether and where the tree differs from it, and the digest of dvc.lock.

    Args:
        folder: of the repository.
    """
    tags = {}
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is not None:
        tags["git.revision"] = revision
        changed = (_git(folder, "diff", "--name-only", "HEAD") or "").split("\n")
        # Untracked files affect a result as well.
        new = _git(folder, "ls-files", "--others", "--exclude-standard", "--", *_CODE) or ""
        changed = [name for name in [*changed, *new.split("\n")] if name not in ("", _LOCK)]
        tags["git.dirty"] = str(bool(changed)).lower()
        if changed:
            # MLflow's limit of a value.
            tags["git.changed"] = " ".join(changed)[:_LONGEST_TAG]
    lock = folder / _LOCK
    if lock.exists():
        tags["dvc.lock.sha256"] = sha256_of(lock)
    return tags


def _safe(name: str) -> str:
    # MLflow allows letters, digits and _ - . / : and space in names.
    return name.replace("@", "_at_")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


_PREFIX = "system/"


class SystemMetrics:
    """Metrics of a process, its children and its machine, at MLflow's sampling interval.

    MLflow's monitoring thread ends at the first call that fails, and records nothing for a stage of
    less than ten seconds. Here the MLflow worker polls the monitors instead.

    Args:
        run_id: of the MLflow run.
        address: URL of the tracking server.
        pid: of the process.
    """

    def __init__(self, run_id: str, address: str, pid: int) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor: Any = SystemMetricsMonitor(run_id, tracking_uri=address)
        self._pid, self._count = pid, 0
        # The first CPU measurement covers no time interval.
        self._monitor.collect_metrics()
        self._clear()

    @property
    def due(self) -> bool:
        """Whether the interval is over."""
        interval: float = self._monitor.sampling_interval
        return time.monotonic() - self._asked_at >= interval

    def sample(self) -> tuple[dict[str, float], int]:
        """The current metrics, and the sample number, from 0."""
        self._monitor.collect_metrics()
        found = {**self._monitor.aggregate_metrics(), "stage_memory_megabytes": self._memory()}
        self._clear()
        self._count += 1
        return {_PREFIX + name: float(value) for name, value in found.items()}, self._count - 1

    def _clear(self) -> None:
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()
        self._asked_at = time.monotonic()

    def _memory(self) -> float:
        """Resident memory of the process and its children, without this process."""
        total = 0
        try:
            stage = psutil.Process(self._pid)
            for process in (stage, *stage.children(recursive=True)):
                if process.pid != os.getpid():
                    total += process.memory_info().rss
        except psutil.Error:
            pass
        return round(total / 1e6, 1)
