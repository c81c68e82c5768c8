"""``python -m mrmodel.track.recorder FD``: brings what a stage tells to MLflow, beside the stage.

Standard input is the stage's file of lines (`mrmodel.track.record`), whose first one is the
`Opening`; the id of the run is written to the file descriptor FD. While the server is away all is
kept and tried again. It ends soon after the stage: when everything is sent; after seconds of
nothing but failures; and in any case seconds after a stage that was killed, whose run is marked so.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import psutil

from mrmodel.errors import FeatureError
from mrmodel.features.manifest import read_manifest
from mrmodel.files import digest_of
from mrmodel.processes import die_with_parent
from mrmodel.progress import announce
from mrmodel.redact import hide_secrets, hide_user, secrets_of
from mrmodel.track.dvc_stage import StageFacts, stage_facts
from mrmodel.track.environment import environment
from mrmodel.track.mlflow_log import MlflowRun, code_tags
from mrmodel.track.outbox import Outbox, Refused, may_pass
from mrmodel.track.record import Opening
from mrmodel.track.server import open_experiment
from mrmodel.track.system_metrics import SystemMetrics

log = logging.getLogger(__name__)

_POLL_S = 0.1
# A server that has not answered for so long by the end of the stage is not waited for.
_PATIENCE_S = 15.0
# After a stage that was killed.
_LAST_S = 5
_SHORT = {
    # The outbox tries again by itself; one request must not block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "AWS_MAX_ATTEMPTS": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Files of a stage that tell people of its result; data are DVC's.
_SHOWN = {".json", ".csv", ".html", ".md", ".svg", ".png"}
_LARGEST_FILE = 10_000_000


class Recorder:
    """The runs of one process.

    Args:
        opening: what the run is of.
        tell: file descriptor that takes the id of the run.
    """

    def __init__(self, opening: Opening, tell: int) -> None:
        self.outbox = Outbox()
        self._opening, self._tell = opening, tell
        self._secrets = secrets_of(os.environ)
        self._facts = self._ask_dvc()
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[int, MlflowRun] = {}
        self._files: dict[int, list[Path]] = {0: []}
        self._metrics: SystemMetrics | None = None
        self.ended = False
        self.outbox.put("the run", self._create)
        self.outbox.put("what the run is of", self._describe)

    def take(self, message: dict[str, Any]) -> None:
        """Put what a line says into the outbox."""
        kind, key = message["kind"], message["run"]
        if kind == "part" or key in self._files:  # else the run has ended
            getattr(self, f"_take_{kind}")(key, message["at"], message)

    def sample(self) -> None:
        """Add system metrics where it is time for them."""
        if self._metrics is not None and self._metrics.due:
            figures, number = self._metrics.sample()
            at = int(time.time() * 1000)
            self.outbox.put("system metrics", lambda: self._runs[0].log(figures, number, at))

    def killed(self) -> None:
        """Mark all runs as killed that have not ended."""
        now = int(time.time() * 1000)
        for key in sorted(self._files, reverse=True):
            self._take_end(key, now, {"status": "KILLED"})

    def _take_log(self, key: int, at: int, message: dict[str, Any]) -> None:
        figures, step = message["figures"], message["step"]
        self.outbox.put("figures", lambda: self._runs[key].log(figures, step, at))

    def _take_params(self, key: int, at: int, message: dict[str, Any]) -> None:
        self.outbox.put("parameters", lambda: self._runs[key].params(message["tree"]))

    def _take_tags(self, key: int, at: int, message: dict[str, Any]) -> None:
        self.outbox.put("tags", lambda: self._runs[key].tags(message["tags"]))

    def _take_text(self, key: int, at: int, message: dict[str, Any]) -> None:
        name, content = message["name"], message["content"]
        self.outbox.put(name, lambda: self._runs[key].text(name, content))

    def _take_table(self, key: int, at: int, message: dict[str, Any]) -> None:
        name, columns = message["name"], message["columns"]
        self.outbox.put(name, lambda: self._runs[key].table(name, columns))

    def _take_file(self, key: int, at: int, message: dict[str, Any]) -> None:
        self._files[key].append(Path(message["path"]))

    def _take_part(self, key: int, at: int, message: dict[str, Any]) -> None:
        self._files[key] = []
        self.outbox.put(message["name"], lambda: self._create_part(key, at, message))

    def _take_end(self, key: int, at: int, message: dict[str, Any]) -> None:
        status, files = message["status"], self._files.pop(key)
        if status != "KILLED":
            for path in dict.fromkeys([*files, *(self._results() if key == 0 else [])]):
                self.outbox.put(str(path), partial(self._send_file, key, path))
        if key == 0:
            self.ended = True
            self.outbox.put("the last figures", lambda: self._finish(at))
            self.outbox.hurry()
        self.outbox.put("the end of the run", lambda: self._runs[key].end(status, at))

    def _send_file(self, key: int, path: Path) -> None:
        self._runs[key].file(path)

    def _finish(self, at: int) -> None:
        """A last sample, which a short stage has for its only one, and what the stage wrote."""
        run = self._runs[0]
        run.log({"seconds": (at - self._opening.began) / 1000}, 0, at)
        if self._metrics is not None:
            run.log(*self._metrics.sample(), at)
        if self._facts is not None:
            self._streams(written=True)
        # Runs below this one end before it does, but for those of workers that died.
        for lost in self._open_runs(f"tags.`mlflow.parentRunId` = '{run.run_id}'"):
            self._client.set_terminated(lost.info.run_id, "KILLED")

    def _ask_dvc(self) -> StageFacts | None:
        opening = self._opening
        if opening.command is None:
            return None
        try:
            return stage_facts(opening.stage, opening.command)
        except Exception as error:  # DVC's errors have no common ground.
            log.warning("the record knows nothing from DVC: %s", error)
            return None

    def _create(self) -> None:
        """Open the run.

        Raises:
            Refused: the server takes no run of this experiment.
        """
        opening = self._opening
        name = self._facts.name if self._facts else opening.name
        try:
            state = Path(opening.state)
            self._client, self._experiment = open_experiment(opening.experiment, state)
            self._end_lost(name)
            self._runs[0] = self._run(name, opening.began, opening.parent, opening.title)
        except Exception as error:
            if may_pass(error):
                raise
            raise Refused(f"no record of {name}: {error}") from error
        run_id = self._runs[0].run_id
        os.write(self._tell, run_id.encode())
        announce("mlflow", address=self._address(run_id))
        if opening.command is not None:
            address = str(self._client.tracking_uri)
            self._metrics = SystemMetrics(run_id, address, opening.pid)

    def _create_part(self, key: int, at: int, message: dict[str, Any]) -> None:
        above = self._runs[message["above"]].run_id
        self._runs[key] = self._run(message["name"], at, above)

    def _run(
        self, name: str, began: int, parent: str | None, title: str | None = None
    ) -> MlflowRun:
        tags = {"mlflow.runName": title or name, "stage": name, **_who()}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        created = self._client.create_run(self._experiment, start_time=began, tags=tags)
        return MlflowRun(self._client, created.info.run_id, self._hide)

    def _end_lost(self, name: str) -> None:
        """Runs of this stage whose recorder was killed on this machine are still open."""
        here = f"tags.stage = '{name}' and tags.machine = '{_who()['machine']}'"
        for run in self._open_runs(here):
            if not _is_alive(run.data.tags.get("process", "")):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _open_runs(self, which: str) -> list[Any]:
        where = f"attributes.status = 'RUNNING' and {which}"
        return list(self._client.search_runs([self._experiment], where))

    def _describe(self) -> None:
        run, opening, facts = self._runs[0], self._opening, self._facts
        code = code_tags(Path(opening.code))
        tags = {**code, "mlflow.source.git.commit": code.get("git.revision", "")}
        if opening.command is not None:
            tags["mlflow.source.name"] = opening.command
        versions = environment()
        run.tags({**tags, **{f"env.{name}": versions[name] for name in _SEARCHED}})
        run.text("environment.json", _pretty(versions))
        if facts is not None:
            run.params(facts.params)
            run.text("params.json", _pretty(facts.params))
            run.inputs(facts.inputs)
            self._streams(written=False)

    def _streams(self, written: bool) -> None:
        """Fingerprints of the feature stores that the stage reads, or has written."""
        assert self._facts is not None
        paths = self._facts.outs if written else [Path(one.path) for one in self._facts.inputs]
        found = fingerprints(paths)
        if found:
            digests = {f"features.{name}": digest_of(tree) for name, tree in found.items()}
            self._runs[0].tags(digests)
            self._runs[0].text("features.json", _pretty(found))

    def _results(self) -> list[Path]:
        outs = self._facts.outs if self._facts else []
        found = [one for out in outs for one in ([out] if out.is_file() else sorted(out.glob("*")))]
        return [
            path
            for path in found
            if path.suffix in _SHOWN and path.is_file() and path.stat().st_size <= _LARGEST_FILE
        ]

    def _address(self, run_id: str) -> str:
        """Page of a run; empty where no server shows it."""
        server = hide_user(str(self._client.tracking_uri)).rstrip("/")
        page = f"{server}/#/experiments/{self._experiment}/runs/{run_id}"
        return self._hide(page) if server.startswith("http") else ""

    def _hide(self, text: str) -> str:
        return hide_secrets(text, self._secrets)


_SEARCHED = ("python", "torch", "mlflow", "dvc", "numpy", "system")


def fingerprints(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Stream -> fingerprint, of the feature stores that are one of `paths` or lie in one."""
    found = {}
    for folder in [one for path in paths for one in (path, *sorted(path.glob("*/")))]:
        try:
            info = read_manifest(folder).info
        except (FeatureError, OSError):
            continue  # Something else than a feature store.
        found[info.stream] = info.fingerprint
    return found


def _who() -> dict[str, str]:
    """By which a later run knows whether this process still lives."""
    process = psutil.Process()
    return {
        "machine": socket.gethostname(),
        "process": f"{process.pid}:{process.create_time():.2f}",
    }


def _is_alive(process: str) -> bool:
    pid, _, began = process.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False


def _pretty(tree: object) -> str:
    return json.dumps(tree, indent=2, default=str) + "\n"


class _Lines:
    """Whole lines of a file that grows."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rest = file, ""

    def new(self) -> list[dict[str, Any]]:
        """Messages that came since the last call."""
        *whole, self._rest = (self._rest + self._file.read()).split("\n")
        return [json.loads(line) for line in whole]


def _follow(recorder: Recorder, lines: _Lines, opening: Opening) -> None:
    """Until the stage has ended and all is sent, or cannot be."""
    while True:
        orphan = os.getppid() != opening.pid
        for message in lines.new():
            recorder.take(message)
        if orphan and not recorder.ended:
            recorder.killed()
        recorder.sample()
        recorder.outbox.push()
        if recorder.ended:
            if not recorder.outbox:
                return
            if recorder.outbox.failing_s > _PATIENCE_S:
                log.warning("MLflow does not answer; this run's record is incomplete")
                return
        time.sleep(_POLL_S)


def main() -> int:
    """Follow the stage to its end."""
    # A stage that is killed: its run is marked, for which there are a few seconds.
    signal.signal(signal.SIGUSR1, lambda *_: signal.alarm(_LAST_S))
    die_with_parent(signal.SIGUSR1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.update(_SHORT)
    lines = _Lines(sys.stdin)
    first, *rest = lines.new()
    opening = Opening(**first)
    recorder = Recorder(opening, int(sys.argv[1]))
    for message in rest:
        recorder.take(message)
    try:
        _follow(recorder, lines, opening)
    except Refused as error:
        log.warning("%s", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
