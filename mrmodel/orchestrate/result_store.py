"""Requests for stages and shards, and the results of stages: lock-file entry and metrics, no data.

Every worker starts by importing this module, so it loads neither torch nor DVC.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrmodel.errors import ConflictError, OrchestrationError
from mrmodel.features.keys import shard_of
from mrmodel.files import digest_of
from mrmodel.storage import Store, open_store


@dataclass(frozen=True, slots=True)
class StageResult:
    """A stage that ran and whose outputs are in the DVC remote or the shared cache.

    Attributes:
        stage: its name.
        key: digest of its inputs, see `dvc_graph.StageStatus`.
        entry: its entry in the lock file.
        figures: path -> content of its small JSON metrics.
        curves: path -> values of the plotted column, in order.
        began: when its command started, seconds since 1970.
        seconds: step -> duration (clone, pull, run, push).
        mlflow: URL of its MLflow run; empty if there is none.
        worker: name of the machine.
    """

    stage: str
    key: str
    entry: dict[str, Any]
    figures: dict[str, Any]
    curves: dict[str, list[float]]
    began: float
    seconds: dict[str, float]
    mlflow: str
    worker: str


class ResultStore:
    """Results by stage and key; the first one stored is never replaced.

    Attributes:
        store: holds the results, and the shards of extractions.
    """

    def __init__(self, url: str, endpoint: str | None) -> None:
        self.store: Store = open_store(url, endpoint)

    def find(self, stage: str, key: str) -> StageResult | None:
        """The result of a stage with exactly these inputs, if there is one.

        Raises:
            OrchestrationError: the stored result is damaged.
        """
        name = _name(stage, key)
        found = self.store.get(name)
        if found is None:
            return None
        try:
            return StageResult(**json.loads(found.content))
        except (ValueError, TypeError) as error:
            rule = f"{self.store.url}/{name}: not a result record ({error}); delete it to run again"
            raise OrchestrationError(rule) from error

    def keep(self, result: StageResult) -> StageResult:
        """Store a result; returns the stored one, which is another worker's if it was first."""
        content = json.dumps(asdict(result), indent=2, allow_nan=False).encode()
        try:
            self.store.put(_name(result.stage, result.key), content, if_absent=True)
        except ConflictError:
            return self.find(result.stage, result.key) or result
        return result

    def drop(self, stage: str, key: str) -> None:
        """Delete a result whose data are gone."""
        self.store.delete(_name(stage, key))

    def wait(self) -> None:
        """Return when the store is reachable.

        Raises:
            StorageError: it was unreachable for longer than the store's timeout.
        """
        self.store.exists("results")


def file_name(stage: str) -> str:
    """The name of a stage as part of a path."""
    return stage.replace("/", "_").replace(":", "_")


def _name(stage: str, key: str) -> str:
    return f"results/{file_name(stage)}/{key}.json"


@dataclass(frozen=True, slots=True)
class StageRequest:
    """One stage to run.

    Attributes:
        stage: name in the graph, e.g. ``finetune@sg_detr``.
        rev: revision of the code, of dvc.yaml and of params.yaml.
        locks: path -> text of the lock files, with the outputs of the upstream stages.
        timeout_s: the stage is killed after this time; None: never.
        shards: how its videos are spread over workers (`ShardSettings`); None: not at all.
        parent_run: id of the MLflow run of the whole pipeline; not part of the key.
    """

    stage: str
    rev: str
    locks: dict[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    shards: dict[str, Any] | None = None
    parent_run: str | None = None


class ExitCode(enum.IntEnum):
    """How an attempt ended."""

    DONE = 0
    FAILED = 1
    KILLED = 3


class ShardInterrupted(OrchestrationError):
    """The process of a shard was killed, or the store was unreachable; a retry may help."""


class ShardFailed(OrchestrationError):
    """A shard ended with an error of its own; a retry would give the same error."""


@dataclass(frozen=True, slots=True)
class ShardRequest:
    """One shard to extract.

    Attributes:
        stream: name of the encoder.
        plan: see `mrmodel.features.extraction.job_runner.extraction_plan`.
        digest: key of the extraction in the store.
        index, count: index of the shard (from 0), and number of shards.
        files: file names of its videos, in the video folder.
        workers: processes; 0: as params.yaml sets.
    """

    stream: str
    plan: dict[str, Any]
    digest: str
    index: int
    count: int
    files: tuple[str, ...]
    workers: int = 0

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count} of {self.stream}"


@dataclass(frozen=True, slots=True)
class ShardedStream:
    """A stream that is extracted in shards.

    Attributes:
        stream: name of the encoder.
        plan: settings that determine its partial results; `plan_of` computes it from a clone.
        content: path -> DVC hash of every dependency of the stage: the videos and the code. Shards
            of other content are never mixed with these.
        files: file names of all videos, in the video folder.
        count: number of shards.
        workers: processes of each shard; 0: as params.yaml sets.
    """

    stream: str
    plan: dict[str, Any]
    content: dict[str, str]
    files: tuple[str, ...]
    count: int
    workers: int = 0

    @property
    def digest(self) -> str:
        """Key of the extraction in the store: equal for equal inputs, on every machine."""
        return digest_of({"plan": self.plan, "content": self.content})

    def orders(self) -> list[ShardRequest]:
        """All shards."""
        names = {Path(name).stem: name for name in sorted(self.files)}
        return [
            ShardRequest(
                self.stream,
                self.plan,
                self.digest,
                index,
                self.count,
                tuple(names[key] for key in shard_of(names, index, self.count)),
                self.workers,
            )
            for index in range(self.count)
        ]
