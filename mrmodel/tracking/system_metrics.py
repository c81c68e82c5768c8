"""System metrics of the machine, its GPUs and the stage, from MLflow's own monitors.

MLflow's monitoring thread ends at the first call that fails, and records nothing for a stage of
less than ten seconds. Here the MLflow worker polls the monitors instead.
"""

from __future__ import annotations

import os
import time
from typing import Any

import psutil

_PREFIX = "system/"


class SystemMetrics:
    """Metrics of a process, its children and its machine, at MLflow's sampling interval.

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
