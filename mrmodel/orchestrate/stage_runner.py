"""``python -m mrmodel.orchestrate.stage_runner ORDER.json``: runs one stage in a fresh clone.

Always its own process under `mrmodel.processes`, so that it can be killed as a whole. It announces
its steps through `mrmodel.progress.announce` and writes the result next to the request; its exit
code is an `ExitCode`.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import asdict
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.stage.exceptions import StageCmdFailedError

from mrmodel.errors import MrModelError
from mrmodel.files import one_at_a_time, read_json, write_json
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import (
    ExitCode,
    ResultStore,
    ShardedStream,
    ShardInterrupted,
    StageRequest,
    StageResult,
    file_name,
)
from mrmodel.processes import die_with_parent
from mrmodel.progress import EVENTS, announce
from mrmodel.tracking.run import PARENT

log = logging.getLogger(__name__)

_LARGEST_FIGURES = 100_000
_MOST_POINTS = 10_000


class StageRunner:
    """The steps of one stage, each timed and announced."""

    def __init__(
        self,
        order: StageRequest,
        environment: RuntimeEnvironment,
        sharded: ShardedStream | None = None,
    ) -> None:
        """Prepare an attempt; `sharded`: shards of its extraction are in the result store."""
        self._order, self._environment, self._sharded = order, environment, sharded
        self._result_store = ResultStore(environment.result_store, environment.endpoint)
        self._transfer = Transfer(environment, self._result_store)
        self._seconds: dict[str, float] = {}

    def run(self) -> StageResult:
        """Clone, pull the stage's dependencies, run it, push its outputs.

        Raises:
            OrchestrationError: a step failed permanently.
            StageCmdFailedError: the stage's command ended with an error.
        """
        order, environment = self._order, self._environment
        # Two attempts at one stage would share their resume state.
        busy = environment.state / "attempts" / f"{file_name(order.stage)}.lock"
        with one_at_a_time(busy), fresh_clone(environment, order.rev, order.locks) as folder:
            with self._step("clone"):
                graph = StageGraph(folder, self._transfer.remote, self._result_store.wait)
                key = graph.status(order.stage).key
            done = self._result_store.find(order.stage, key)
            if done is not None:
                return done
            _put_on_path(folder)
            if order.parent_run is not None:
                os.environ[PARENT] = order.parent_run
            with self._step("pull"):
                self._transfer.fetch(graph.repo, graph.inputs(order.stage))
                self._gather(folder)
            began = time.time()
            # DVC looks up stage names in the current folder.
            with self._step("run"), chdir(folder):
                graph.repo.reproduce([order.stage], single_item=True)
            with self._step("push"), chdir(folder):
                self._transfer.push(graph.repo, order.stage)
            result = self._result_store.keep(self._result(graph, key, began))
            self._forget()
            return result

    def _gather(self, folder: Path) -> None:
        if self._sharded is not None:
            # Imported here: feature extraction adds half a second that most stages do not need.
            from mrmodel.orchestrate.sharding import gather_shards

            gather_shards(self._sharded, folder, self._result_store.store)

    def _forget(self) -> None:
        if self._sharded is not None:
            from mrmodel.orchestrate.sharding import forget_shards

            forget_shards(self._sharded, self._result_store.store)

    def _result(self, graph: StageGraph, key: str, began: float) -> StageResult:
        stage, figures, curves = self._order.stage, {}, {}
        for path in graph.metrics(stage):
            if path.suffix == ".json" and path.stat().st_size <= _LARGEST_FIGURES:
                name = str(path.relative_to(graph.folder))
                figures[name] = read_json(path)
        for path, column in graph.plots(stage).items():
            name = str(path.relative_to(graph.folder))
            with path.open(newline="", encoding="utf-8") as file:
                values = [row[column] for row in csv.DictReader(file)]
            curves[name] = [float(value) for value in values if value][:_MOST_POINTS]
        return StageResult(
            stage=stage,
            key=key,
            entry=graph.entry(stage),
            figures=figures,
            curves=curves,
            began=began,
            seconds=self._seconds,
            mlflow=_mlflow_address(),
            worker=socket.gethostname(),
        )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        announce("step", name=name)
        started = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - started, 3)


def _mlflow_address() -> str:
    """URL of the MLflow run that the stage announced."""
    path = os.environ.get(EVENTS)
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    events = [event for line in lines if (event := json.loads(line))["event"] == "mlflow"]
    return str(events[-1]["address"]) if events else ""


def _put_on_path(folder: Path) -> None:
    """Put the clone's code and this Python's programs first for the stage's command."""
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = programs + os.pathsep + os.environ.get("PATH", "")
    os.environ["PYTHONPATH"] = str(folder)


def _killed(error: BaseException | None) -> bool:
    """Whether a command in the chain of errors was ended by a signal."""
    while error is not None:
        if isinstance(error, StageCmdFailedError):
            status = str(error).rpartition(" ")[2]
            return status.lstrip("-").isdigit() and (int(status) < 0 or int(status) > 128)
        error = error.__cause__ or error.__context__
    return False


def _explain(error: BaseException) -> str:
    """The messages of an error and its causes; DVC's own messages are incomplete alone."""
    said = [str(error)]
    while (error := error.__cause__) is not None:  # type: ignore[assignment]
        if str(error) not in said[-1]:
            said.append(str(error))
    return ": ".join(filter(None, said))


def main() -> int:
    """Run the request in the file given as argument."""
    die_with_parent()
    file = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # DVC prints its messages itself.
    logging.getLogger("dvc").propagate = False
    for noisy in ("dvc_objects", "dvc_data", "aiobotocore", "botocore", "s3fs"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    content = read_json(file)
    order, sharded = StageRequest(**content["order"]), None
    if content["sharded"] is not None:
        sharded = ShardedStream(
            **(content["sharded"] | {"files": tuple(content["sharded"]["files"])})
        )
    try:
        result = StageRunner(order, RuntimeEnvironment.from_environment(), sharded).run()
    except Exception as error:
        if _killed(error) or isinstance(error, ShardInterrupted):
            log.error("%s: its process was killed", order.stage)
            return ExitCode.KILLED
        if not isinstance(error, MrModelError | DvcException):
            log.exception("%s", order.stage)
        write_json(file.with_name("error.json"), {"message": _explain(error)})
        return ExitCode.FAILED
    write_json(file.with_name("result.json"), asdict(result))
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
