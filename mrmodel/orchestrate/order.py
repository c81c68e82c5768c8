"""What a worker is asked to do, and how that may end."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StageOrder:
    """One stage to run.

    Attributes:
        stage: name in the graph, e.g. ``finetune@sg_detr``.
        rev: revision of the code, of dvc.yaml and of params.yaml.
        locks: path -> text of the lock files: what the stages before it made.
        timeout_s: the stage is ended after so many seconds; None: never.
        shards: how its videos are spread over workers (`config.ShardSettings`); None: not at all.
        parent_run: MLflow's id of the run of the whole pipeline; decides nothing.
    """

    stage: str
    rev: str
    locks: dict[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    shards: dict[str, Any] | None = None
    parent_run: str | None = None


class Outcome(enum.IntEnum):
    """How an attempt ended."""

    DONE = 0
    FAILED = 1
    KILLED = 3
