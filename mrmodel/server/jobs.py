"""Jobs: work that takes longer than a request. It waits, runs, can be polled and cancelled."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrmodel.server import schema
from mrmodel.server.errors import ApiError, BusyError, api_error

log = logging.getLogger(__name__)

# Jobs that wait or run; one more is refused.
_OPEN, _MOST_OPEN = ("queued", "running"), 64
# Ended jobs that are remembered, with their files.
_MOST_ENDED = 200
_RETRY_S = 10


@dataclass(slots=True)
class Job:
    """Work of one kind.

    Attributes:
        id: for clients.
        kind: such as ``add``.
        request_id: of the request that began it.
        state: see `schema.Job`.
        stop: set when it is to end; the work looks at it.
        message: what it is doing.
        result: of the work.
        error: why it failed.
        folder: for its files; made when it is first asked for.
        file: that it made, in `folder`.
    """

    id: str
    kind: str
    request_id: str
    state: str = "queued"
    stop: threading.Event = field(default_factory=threading.Event)
    message: str = ""
    result: Mapping[str, Any] | None = None
    error: ApiError | None = None
    folder: Path | None = None
    file: Path | None = None

    def as_body(self) -> schema.Job:
        """For clients."""
        error = None
        if self.error is not None:
            error = schema.ErrorBody(
                code=self.error.code, message=self.error.message, request_id=self.request_id
            )
        return schema.Job.model_validate(
            {
                "id": self.id,
                "kind": self.kind,
                "state": self.state,
                "progress": 1.0 if self.state == "done" else None,
                "message": self.message,
                "result": self.result,
                "error": error,
            }
        )


# What a job does; returns its result.
Work = Callable[[Job], Mapping[str, Any]]


class Jobs:
    """The jobs of a server; those of one kind run one after the other.

    Args:
        on_end: called with each job that has ended.
    """

    def __init__(self, on_end: Callable[[Job], object]) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._lanes: dict[str, ThreadPoolExecutor] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="mrmodel-jobs-"))

    def submit(self, kind: str, work: Work, request_id: str) -> Job:
        """Begin a job, or let it wait for the others of its kind.

        Args:
            kind: see `Job`.
            work: called in a thread. Errors of clients and of the machine fail the job with their
                message; it is cancelled if `Job.stop` was set before it returned.
            request_id: see `Job`.

        Raises:
            BusyError: too many jobs wait.
        """
        job = Job(secrets.token_hex(10), kind, request_id)
        with self._lock:
            if self.open() >= _MOST_OPEN:
                raise BusyError(_RETRY_S)
            self._forget_oldest()
            self._jobs[job.id] = job
            lane = self._lanes.setdefault(kind, ThreadPoolExecutor(1, f"job-{kind}"))
        lane.submit(self._run, job, work)
        return job

    def get(self, id_: str) -> Job:
        """A job.

        Raises:
            ApiError: there is none.
        """
        found = self._jobs.get(id_)
        if found is None:
            raise ApiError(404, "no_such_job", f"there is no job {id_}; old ones are forgotten")
        return found

    def cancel(self, id_: str) -> Job:
        """End a job as soon as it can; one that has ended stays as it is."""
        job = self.get(id_)
        with self._lock:
            job.stop.set()
            if job.state == "queued":
                job.state = "cancelled"
        return job

    def folder_of(self, job: Job) -> Path:
        """A folder for the files of a job; gone when the job is forgotten."""
        if job.folder is None:
            job.folder = self._folder / job.id
            job.folder.mkdir()
        return job.folder

    def open(self) -> int:
        """Jobs that wait or run."""
        return sum(job.state in _OPEN for job in list(self._jobs.values()))

    def close(self) -> None:
        """Cancel all jobs, wait for those that run, and delete all files."""
        for id_ in list(self._jobs):
            self.cancel(id_)
        for lane in self._lanes.values():
            lane.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, job: Job, work: Work) -> None:
        with self._lock:
            if job.state != "queued":
                return
            job.state = "running"
        state, error = "done", None
        try:
            job.result = work(job)
        except Exception as found:
            state, error = "failed", api_error(found)
            if error is None:
                log.exception("job %s (%s, request %s)", job.id, job.kind, job.request_id)
                error = ApiError(500, "defect", "a defect of the server; its log tells more")
        if state == "failed" and job.stop.is_set():
            state, error = "cancelled", None
        job.error, job.message = error, ""
        job.state = state
        log.info("job %s %s: %s", job.id, job.kind, state)
        self._on_end(job)

    def _forget_oldest(self) -> None:
        ended = [one for one in self._jobs.values() if one.state not in _OPEN]
        for job in ended[: max(0, len(ended) - _MOST_ENDED)]:
            del self._jobs[job.id]
            if job.folder is not None:
                shutil.rmtree(job.folder, ignore_errors=True)
