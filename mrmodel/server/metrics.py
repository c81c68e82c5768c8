"""Numbers of the server for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one server.

    Args:
        waiting: number of searches that run or wait.
        jobs: number of jobs that run or wait.
        videos: number of videos.
    """

    def __init__(
        self, waiting: Callable[[], int], jobs: Callable[[], int], videos: Callable[[], int]
    ) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter(
            "mrmodel_requests",
            "Answers",
            ["method", "route", "status"],
            registry=own,
        )
        self.seconds = Histogram(
            "mrmodel_request_seconds",
            "Time to the end of an answer",
            ["route"],
            registry=own,
            buckets=_SECONDS,
        )
        self.jobs = Counter("mrmodel_jobs", "Ended jobs", ["kind", "state"], registry=own)
        self.model = Gauge("mrmodel_model", "What answers", ["name"], registry=own)
        for name, text, count in (
            ("mrmodel_searches_pending", "Searches that run or wait", waiting),
            ("mrmodel_jobs_pending", "Jobs that run or wait", jobs),
            ("mrmodel_videos", "Videos of the library", videos),
        ):
            Gauge(name, text, registry=own).set_function(count)

    def serving(self, name: str) -> None:
        """Note which model answers."""
        self.model.clear()
        self.model.labels(name).set(1)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
