"""Turns each line of a process's event log into MLflow requests.

They are sent in order, and kept while the server is unreachable.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mrmodel.errors import FeatureError
from mrmodel.features.manifest import read_manifest
from mrmodel.files import digest_of
from mrmodel.processes import hide_secrets, hide_user, secrets_of
from mrmodel.progress import announce
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.experiment import open_experiment
from mrmodel.tracking.mlflow_client import MlflowRun, SystemMetrics, code_tags
from mrmodel.tracking.provenance import StageFacts, environment, is_alive, process_tags, stage_facts

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# HTTP client errors are permanent, except for the two below.
_WRONG, _BROKEN = 400, 500
_PASSING = (408, 429)
# MLflow passes on exceptions of these libraries when a server is unreachable.
_LIBRARIES = ("boto3", "botocore", "sqlalchemy", "urllib3")


class RequestRefused(Exception):
    """The server rejects the whole run."""


class Outbox:
    """Messages in order; `push` waits for the server for at most one request."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque()
        self._pause_s, self._next_try = 0.0, 0.0
        self._failing_since: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def failing_s(self) -> float:
        """Seconds since the first of the current consecutive failures."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def put(self, what: str, send: Callable[[], None]) -> None:
        """Add a message.

        Args:
            what: description for the log.
            send: sends it; called again if it raises a transient error.
        """
        self._waiting.append((what, send))

    def push(self) -> None:
        """Send what is waiting, unless the server was unreachable a moment ago.

        Raises:
            Refused: a message shows that no other will be accepted either.
        """
        while self._waiting and time.monotonic() >= self._next_try:
            what, send = self._waiting[0]
            try:
                send()
            except RequestRefused:
                raise
            except Exception as error:
                if not is_transient(error):
                    log.warning("not in MLflow: %s: %s", what, error)
                    self._waiting.popleft()
                    continue
                self._failed(what, error)
            else:
                self._waiting.popleft()
                self._pause_s, self._failing_since = 0.0, None

    def hurry(self) -> None:
        """Make the next `push` try at once."""
        self._next_try = 0.0

    def _failed(self, what: str, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log.warning("MLflow does not take %s: %s", what, error)
        self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._next_try = time.monotonic() + self._pause_s


def is_transient(error: Exception) -> bool:
    """Whether the same message may succeed later: the fault is in the server or the network."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status in _PASSING or not _WRONG <= status < _BROKEN
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return type(error).__module__.partition(".")[0] in _LIBRARIES


log = logging.getLogger(__name__)

# Versions that become tags, so that runs can be searched by them.
_SEARCHED = ("python", "torch", "mlflow", "dvc", "numpy", "system")
# Result files of a stage that are uploaded; data are tracked by DVC.
_SHOWN = {".json", ".csv", ".html", ".md", ".svg", ".png"}
_LARGEST_FILE = 10_000_000


class EventHandler:
    """The runs of one process.

    Args:
        spec: the run spec.
        run_id_writer: file descriptor to which the run id is written.
    """

    def __init__(self, spec: RunSpec, run_id_writer: int) -> None:
        self.outbox = Outbox()
        self._spec, self._run_id_writer = spec, run_id_writer
        self._secrets = secrets_of(os.environ)
        self._facts = self._ask_dvc()
        self._code = code_tags(Path(spec.code))
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[int, MlflowRun] = {}
        self._files: dict[int, list[Path]] = {0: []}
        self._metrics: SystemMetrics | None = None
        self.ended = False
        self.outbox.put("the run", self._create)
        if spec.join is None:
            self.outbox.put("code and command", self._describe_code)
            self.outbox.put("the environment", self._describe_environment)
        if self._facts is not None:
            self._describe_stage(self._facts)

    def handle(self, message: dict[str, Any]) -> None:
        """Put the requests of an event into the outbox."""
        kind, key = message["kind"], message["run"]
        if kind == "part" or key in self._files:  # else the run has ended
            getattr(self, f"_handle_{kind}")(key, message["at"], message)

    def sample(self) -> None:
        """Add system metrics if the interval is over."""
        if self._metrics is not None and self._metrics.due:
            metrics, number = self._metrics.sample()
            at = int(time.time() * 1000)
            self.outbox.put("system metrics", lambda: self._runs[0].log(metrics, number, at))

    def killed(self) -> None:
        """Mark all open runs as killed."""
        now = int(time.time() * 1000)
        for key in sorted(self._files, reverse=True):
            self._handle_end(key, now, {"status": "KILLED"})

    def _handle_log(self, key: int, at: int, message: dict[str, Any]) -> None:
        metrics, step = message["metrics"], message["step"]
        self.outbox.put("metrics", lambda: self._runs[key].log(metrics, step, at))

    def _handle_params(self, key: int, at: int, message: dict[str, Any]) -> None:
        self.outbox.put("parameters", lambda: self._runs[key].params(message["tree"]))

    def _handle_tags(self, key: int, at: int, message: dict[str, Any]) -> None:
        self.outbox.put("tags", lambda: self._runs[key].tags(message["tags"]))

    def _handle_text(self, key: int, at: int, message: dict[str, Any]) -> None:
        name, content = message["name"], message["content"]
        self.outbox.put(name, lambda: self._runs[key].text(name, content))

    def _handle_table(self, key: int, at: int, message: dict[str, Any]) -> None:
        name, columns = message["name"], message["columns"]
        self.outbox.put(name, lambda: self._runs[key].table(name, columns))

    def _handle_file(self, key: int, at: int, message: dict[str, Any]) -> None:
        self._files[key].append(Path(message["path"]))

    def _handle_part(self, key: int, at: int, message: dict[str, Any]) -> None:
        self._files[key] = []
        self.outbox.put(message["name"], lambda: self._create_part(key, at, message))

    def _handle_end(self, key: int, at: int, message: dict[str, Any]) -> None:
        status, files = message["status"], self._files.pop(key)
        if status != "KILLED":
            for path in dict.fromkeys([*files, *(self._results() if key == 0 else [])]):
                self.outbox.put(str(path), partial(self._send_file, key, path))
        if key == 0:
            self._finish(at)
            if self._spec.join is not None:  # Its owner ends the run.
                return
        self.outbox.put("the end of the run", lambda: self._runs[key].end(status, at))

    def _send_file(self, key: int, path: Path) -> None:
        self._runs[key].file(path)

    def _finish(self, at: int) -> None:
        """Add what is known only at the end; a short stage has no other sample of system load."""
        self.ended = True
        if self._spec.join is not None:
            self.outbox.hurry()
            return
        if self._facts is not None:
            self._put_streams(self._facts.outs)
        seconds = {"seconds": (at - self._spec.began) / 1000}
        self.outbox.put("seconds", lambda: self._runs[0].log(seconds, 0, at))
        self.outbox.put("system metrics", lambda: self._last_sample(at))
        self.outbox.put("runs of lost workers", self._end_parts)
        self.outbox.hurry()

    def _last_sample(self, at: int) -> None:
        if self._metrics is not None:
            self._runs[0].log(*self._metrics.sample(), at)

    def _end_parts(self) -> None:
        """End open child runs: those of workers that died."""
        for run in self._open_runs(f"tags.`mlflow.parentRunId` = '{self._runs[0].run_id}'"):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _ask_dvc(self) -> StageFacts | None:
        spec = self._spec
        if spec.command is None:
            return None
        try:
            return stage_facts(spec.stage, spec.command)
        except Exception as error:  # DVC's errors have no common base class.
            log.warning("the record knows nothing from DVC: %s", error)
            return None

    def _create(self) -> None:
        """Create the run.

        Raises:
            Refused: the server rejects runs of this experiment.
        """
        spec = self._spec
        name = self._facts.name if self._facts else spec.name
        try:
            state = Path(spec.state)
            self._client, self._experiment = open_experiment(spec.experiment, state)
            if spec.join is None:
                self._end_lost(name)
                self._runs[0] = self._run(name, spec.began, spec.parent, spec.title)
            else:
                self._runs[0] = MlflowRun(self._client, spec.join, self._hide)
        except Exception as error:
            if is_transient(error):
                raise
            raise RequestRefused(f"no record of {name}: {error}") from error
        run_id = self._runs[0].run_id
        os.write(self._run_id_writer, run_id.encode())
        announce("mlflow", address=self._address(run_id))
        if spec.command is not None:
            address = str(self._client.tracking_uri)
            self._metrics = SystemMetrics(run_id, address, spec.pid)

    def _create_part(self, key: int, at: int, message: dict[str, Any]) -> None:
        above = self._runs[message["above"]].run_id
        self._runs[key] = self._run(message["name"], at, above)

    def _run(
        self, name: str, began: int, parent: str | None, title: str | None = None
    ) -> MlflowRun:
        tags = {"mlflow.runName": title or name, "stage": name, **process_tags()}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        created = self._client.create_run(self._experiment, start_time=began, tags=tags)
        return MlflowRun(self._client, created.info.run_id, self._hide)

    def _end_lost(self, name: str) -> None:
        """End runs of this stage left open by a worker that was killed on this machine."""
        here = f"tags.stage = '{name}' and tags.machine = '{process_tags()['machine']}'"
        for run in self._open_runs(here):
            if not is_alive(run.data.tags.get("process", "")):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _open_runs(self, which: str) -> list[Any]:
        where = f"attributes.status = 'RUNNING' and {which}"
        return list(self._client.search_runs([self._experiment], where))

    def _describe_code(self) -> None:
        tags = {**self._code, "mlflow.source.git.commit": self._code.get("git.revision", "")}
        if self._spec.command is not None:
            tags["mlflow.source.name"] = self._spec.command
        self._runs[0].tags(tags)

    def _describe_environment(self) -> None:
        found = environment()
        self._runs[0].tags({f"env.{name}": found[name] for name in _SEARCHED})
        self._runs[0].text("environment.json", _pretty(found))

    def _describe_stage(self, facts: StageFacts) -> None:
        put = self.outbox.put
        put("parameters", lambda: self._runs[0].params(facts.params))
        put("params.json", lambda: self._runs[0].text("params.json", _pretty(facts.params)))
        put("inputs", lambda: self._runs[0].inputs(facts.inputs))
        self._put_streams([Path(one.path) for one in facts.inputs])

    def _put_streams(self, paths: list[Path]) -> None:
        """Log fingerprints of the feature stores among the stage's inputs or outputs."""
        found = fingerprints(paths)
        if found:
            digests = {f"features.{name}": digest_of(tree) for name, tree in found.items()}
            self.outbox.put("fingerprints", lambda: self._runs[0].tags(digests))
            text = _pretty(found)
            self.outbox.put("features.json", lambda: self._runs[0].text("features.json", text))

    def _results(self) -> list[Path]:
        outs = self._facts.outs if self._facts else []
        found = [one for out in outs for one in ([out] if out.is_file() else sorted(out.glob("*")))]
        return [
            path
            for path in found
            if path.suffix in _SHOWN and path.is_file() and path.stat().st_size <= _LARGEST_FILE
        ]

    def _address(self, run_id: str) -> str:
        """URL of a run; empty without a server."""
        server = hide_user(str(self._client.tracking_uri)).rstrip("/")
        page = f"{server}/#/experiments/{self._experiment}/runs/{run_id}"
        return self._hide(page) if server.startswith("http") else ""

    def _hide(self, text: str) -> str:
        return hide_secrets(text, self._secrets)


def fingerprints(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Stream -> fingerprint, of the feature stores at or inside one of `paths`."""
    found = {}
    for folder in [one for path in paths for one in (path, *sorted(path.glob("*/")))]:
        try:
            info = read_manifest(folder).info
        except (FeatureError, OSError):
            continue  # Not a feature store.
        found[info.stream] = info.fingerprint
    return found


def _pretty(tree: object) -> str:
    return json.dumps(tree, indent=2, default=str, allow_nan=False) + "\n"
