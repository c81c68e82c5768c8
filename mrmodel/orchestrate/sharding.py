"""One extraction spread over workers: each shard in its own clone, with its own videos.

Workers put shards into the result store. The worker that runs the stage ``extract`` merges them
into its work folder, where the stage finds all of its videos done.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrmodel.config.schema import ShardSettings, load_config
from mrmodel.errors import MrModelError, StorageError
from mrmodel.features.extraction.shards import ShardSummary
from mrmodel.files import one_at_a_time, read_json, write_json
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import (
    ResultStore,
    ShardedStream,
    ShardFailed,
    ShardInterrupted,
    ShardRequest,
    StageRequest,
)
from mrmodel.orchestrate.run_branch import PARAMS
from mrmodel.processes import run_python, tasks_at_once, worker_count
from mrmodel.stages.paths import Paths
from mrmodel.stages.shards import (
    EARLIER_FILE,
    ORDER_FILE,
    PLAN_FILE,
    SUMMARY_FILE,
    TAR_FILE,
    tar_name,
)
from mrmodel.storage import Store
from mrmodel.text import table

log = logging.getLogger(__name__)
_SHOWN_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard that is in the store: its index, its worker, and the outcome of its videos."""

    index: int
    count: int
    worker: str
    summary: ShardSummary


def shard_key(digest: str, index: int, count: int) -> str:
    """Key of a shard in the store; its report has ``.json`` for ``.tar``."""
    return f"pieces/{digest}/{tar_name(index, count)}"


def plan_of(clone: Path, stream: str) -> dict[str, Any]:
    """Settings that determine the partial results, from a clone's code and the libraries here.

    Raises:
        ShardFailed: the clone cannot compute them, for example because the encoder is unknown.
    """
    with _exchange(clone) as folder:
        _run_step(clone, stream, "plan", folder, stream)
        plan: dict[str, Any] = read_json(folder / PLAN_FILE)
    return plan


def find_report(order: ShardRequest, store: Store) -> ShardReport | None:
    """The report of a shard that is in the store."""
    key = shard_key(order.digest, order.index, order.count)
    found = store.get(_report_key(key))
    if found is None or not store.exists(key):
        return None
    try:
        raw = json.loads(found.content)
        return ShardReport(**(raw | {"summary": ShardSummary(**raw["summary"])}))
    except (ValueError, TypeError, KeyError):
        return None  # Of another release: the shard is extracted again, which replaces it.


def make_shard(order: ShardRequest, clone: Path, store: Store) -> ShardReport:
    """Extract a shard and store it, unless it is there; a worker's whole task.

    A stored shard in which videos failed with transient errors is extracted again from its partial
    results. Work of a killed attempt on this machine is resumed from the clone's ``.mrmodel``.

    Args:
        order: the shard.
        clone: folder with the code and params.yaml of the revision, and with the videos of this
            shard (others may be missing).
        store: takes the shard.

    Raises:
        ShardInterrupted: a retry may help.
        ShardFailed: a retry would not help. Both can be pickled between processes.
    """
    state = clone.resolve() / ".mrmodel"
    name = f"shard-{order.digest[:16]}-{order.index}-of-{order.count}"
    try:
        # Two attempts at one shard would share their resume state.
        with one_at_a_time(state / "attempts" / f"{name}.lock"):
            found = find_report(order, store)
            if found is not None and not found.summary.passing:
                return found
            return _make(order, clone, store, state / "resume" / name, again=found is not None)
    except (ShardInterrupted, ShardFailed):
        raise
    except StorageError as error:
        raise ShardInterrupted(f"{order}: {error}") from None
    except MrModelError as error:
        raise ShardFailed(f"{order}: {error}") from None


def gather_shards(sharded: ShardedStream, clone: Path, store: Store) -> None:
    """Merge all shards into the work folder of the stage ``extract`` of a clone.

    Args:
        sharded: the stream.
        clone: folder with the code of the revision and all videos, in which the stage runs next.
        store: where the shards are.

    Raises:
        ShardInterrupted: a shard is not in the store, or a process was killed.
        ShardFailed: a shard is rejected; the message names it and the reason.
    """
    with _exchange(clone) as folder:
        write_json(folder / ORDER_FILE, {"count": sharded.count})
        for index in range(sharded.count):
            key = shard_key(sharded.digest, index, sharded.count)
            try:
                store.download(key, folder / tar_name(index, sharded.count))
            except StorageError as error:
                raise ShardInterrupted(str(error)) from None
        try:
            _run_step(clone, sharded.stream, "lay", folder, sharded.stream)
        except ShardFailed as error:
            where = f"{store.url}/pieces/{sharded.digest}/"
            hint = "delete what is named below it to have it made again"
            raise ShardFailed(f"{error}\n  from {where}: {hint}") from None


def forget_shards(sharded: ShardedStream, store: Store) -> None:
    """Remove the shards of a stream whose features have been pushed."""
    for key in store.keys(f"pieces/{sharded.digest}/"):
        store.delete(key)


def _make(
    order: ShardRequest, clone: Path, store: Store, work_dir: Path, *, again: bool
) -> ShardReport:
    key = shard_key(order.digest, order.index, order.count)
    with _exchange(clone) as folder:
        if again:
            store.download(key, folder / EARLIER_FILE)
        content = {"plan": order.plan, "files": order.files, "workers": order.workers}
        write_json(folder / ORDER_FILE, {**content, "work_dir": str(work_dir)})
        _run_step(clone, order.stream, "make", folder, str(order))
        summary = read_json(folder / SUMMARY_FILE)
        store.upload(key, folder / TAR_FILE)
    report = ShardReport(order.index, order.count, socket.gethostname(), ShardSummary(**summary))
    # Last: it marks the shard as complete.
    store.put(_report_key(key), json.dumps(asdict(report), indent=2, allow_nan=False).encode())
    shutil.rmtree(work_dir)
    return report


def _report_key(key: str) -> str:
    return key.removesuffix(".tar") + ".json"


@contextmanager
def _exchange(clone: Path) -> Iterator[Path]:
    """A folder for files to and from a step; git ignores it, and it is removed with the clone."""
    parent = clone.resolve() / ".dvc" / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shards-", dir=parent) as name:
        yield Path(name)


def _run_step(clone: Path, stream: str, step: str, folder: Path, whose: str) -> None:
    """Run `mrmodel.stages.shards` with the clone's code; it dies with this process."""
    arguments = ("--stream", stream, "--step", step, "--folder", str(folder))
    ended = run_python(
        "mrmodel.stages.shards", *arguments, folder=clone, variables={"NO_COLOR": "1"}
    )
    if ended.code:
        last = "\n".join(f"  {line}" for line in ended.last)
        if ended.code < 0:
            how = f"its process was killed (signal {-ended.code})"
            raise ShardInterrupted(f"{whose}: {step}: {how}\n{last}")
        raise ShardFailed(f"{whose}: {step} failed\n{last}")


def sharded_stream(order: StageRequest, settings: ShardSettings) -> ShardedStream:
    """The sharded extraction of a stage ``extract@<stream>``; needs no video.

    Raises:
        OrchestrationError: the revision, or the stage in it, is not available.
        ShardFailed: the revision does not know the encoder.
    """
    with _clone(order) as (folder, graph, _):
        config = load_config(folder / PARAMS)
        stream = order.stage.partition("@")[2]
        contents = {path: value or "" for path, value in graph.contents(order.stage).items()}
        return ShardedStream(
            stream,
            plan_of(folder, stream),
            contents,
            tuple(graph.listing(str(Paths(config).videos))),
            settings.count,
            processes_per_shard(settings, config.features.workers),
        )


@contextmanager
def shard_folder(where: Path | StageRequest, shard: ShardRequest) -> Iterator[Path]:
    """A folder with the code and the videos of one shard.

    Args:
        where: a folder that has them, or the stage's request: then a fresh clone with these videos
            pulled, removed afterwards.
        shard: names the videos.
    """
    if isinstance(where, Path):
        yield where
        return
    with _clone(where) as (folder, graph, transfer):
        transfer.fetch(graph.repo, [str(_videos(folder) / name) for name in shard.files])
        yield folder


@contextmanager
def _clone(order: StageRequest) -> Iterator[tuple[Path, StageGraph, Transfer]]:
    environment = RuntimeEnvironment.from_environment()
    result_store = ResultStore(environment.result_store, environment.endpoint)
    transfer = Transfer(environment, result_store)
    with fresh_clone(environment, order.rev, order.locks) as folder:
        yield folder, StageGraph(folder, transfer.remote, result_store.wait), transfer


def processes_per_shard(settings: ShardSettings, workers: int) -> int:
    """Worker processes of one shard; 0: one per core of the machine that extracts it.

    Shards that this machine extracts in parallel share ``features.workers`` processes (0: its
    cores). On a remote cluster each shard may use all of them.

    Args:
        settings: how the extraction is spread.
        workers: ``features.workers``.
    """
    if settings.address is not None:
        return workers
    return max(1, worker_count(workers) // tasks_at_once(settings.count))


def _videos(folder: Path) -> Path:
    """The video folder, relative to the clone."""
    return Paths(load_config(folder / PARAMS)).videos


log = logging.getLogger(__name__)

_SHOWN_PROBLEMS = 100


class ShardRounds:
    """Rounds of attempts, each with a fresh process pool: a pool with a killed process is broken.

    Args:
        sharded: the stream.
        store: where the shards are.
        attempts: maximum number of rounds, at least one.

    Attributes:
        reports: index -> report, of the shards that are in the store.
    """

    def __init__(self, sharded: ShardedStream, store: Store, attempts: int) -> None:
        self.reports: dict[int, ShardReport] = {}
        self._attempts = attempts
        self._left: dict[int, ShardRequest] = {}
        self._interrupted: dict[int, str] = {}
        self._failed: dict[int, str] = {}
        for order in sharded.orders():
            found = find_report(order, store)
            if found is not None:
                self.reports[order.index] = found
            if found is None or found.summary.passing:
                self._left[order.index] = order

    def ready(self) -> list[ShardRequest]:
        """Shards to extract now; empty when all are done.

        Raises:
            ShardFailed: one ended with an error of its own.
            ShardInterrupted: there is no attempt left.
        """
        if self._failed:
            raise ShardFailed("\n".join(self._failed.values()))
        if self._left and not self._attempts:
            raise ShardInterrupted("\n".join(self._interrupted.values()))
        self._attempts -= 1
        return list(self._left.values())

    def made(self, order: ShardRequest, report: ShardReport) -> None:
        """Record that a shard is in the store."""
        self.reports[order.index] = report
        del self._left[order.index]
        self._interrupted.pop(order.index, None)

    def broke(self, order: ShardRequest, error: BaseException) -> None:
        """Record that a shard failed; it is retried unless the error is `ShardFailed`."""
        if isinstance(error, ShardFailed):
            self._failed[order.index] = str(error)
            return
        known = isinstance(error, ShardInterrupted)
        reason = str(error) if known else f"{order}: {type(error).__name__}: {error}"
        log.warning(reason)
        self._interrupted[order.index] = reason


def shards_markdown(reports: list[ShardReport]) -> str:
    """A table of shards, and the videos that were not extracted completely."""
    head = ("shard", "worker", "videos", "ok", "partial", "failed", "resumed", "rows", "seconds")
    rows, problems = [], list[str]()
    for report in reports:
        one = report.summary
        counts = (one.n_items, one.n_ok, one.n_partial, one.n_failed, one.n_resumed, one.n_rows)
        rows.append((report.index, report.worker, *counts, f"{one.wall_s:.1f}"))
        problems += [f"* `{key}`: {reason}" for key, reason in sorted(one.problems.items())]
    if len(problems) > _SHOWN_PROBLEMS:
        problems[_SHOWN_PROBLEMS:] = [f"* and {len(problems) - _SHOWN_PROBLEMS} more"]
    return "\n".join([table(head, rows), "", *problems]).rstrip() + "\n"
