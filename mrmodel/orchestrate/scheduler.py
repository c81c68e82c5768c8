"""Schedules the stages of a graph: which can start now, and how to handle their outcome.

It starts nothing itself: the caller runs the stages that `ready` returns, on workers or locally,
and reports how each ended. The graph is queried again after every merged result, since only then
is it known whether downstream stages have changed inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from mrmodel.config.schema import OrchestrateSettings
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.result_store import ResultStore, StageRequest, StageResult

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "unchanged", "restored", "ran", "failed", "blocked"]
_GOOD = ("unchanged", "restored", "ran")
_BAD = ("failed", "blocked")
# The stage that can be sharded: videos are independent of each other.
_SHARDED = "extract"


@dataclass(slots=True)
class StageRow:
    """State of a stage in this run.

    Attributes:
        stage: its name.
        pool: the work pool it belongs to.
        state: ``restored``: an earlier run had the same inputs; ``blocked``: an upstream stage
            failed.
        reason: why it ran, or why it could not.
        attempts: how often it was started.
        result: its result, if any.
    """

    stage: str
    pool: str
    state: State = "waiting"
    reason: str = ""
    attempts: int = 0
    key: str = ""
    result: StageResult | None = None


@dataclass(frozen=True, slots=True)
class ScheduledStage:
    """A request, its work pool, and the key of its result in the result store."""

    order: StageRequest
    pool: str
    key: str


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """How a dispatched stage ended: with a result, or with the reason why there is none.

    Attributes:
        result: of the stage.
        reason: what went wrong.
        retryable: whether its process or worker died, so that a retry may help.
    """

    result: StageResult | None = None
    reason: str = ""
    retryable: bool = False


@dataclass(slots=True)
class Scheduler:
    """One orchestrated run of some stages of a clone at `rev`."""

    graph: StageGraph
    result_store: ResultStore
    settings: OrchestrateSettings
    rev: str
    targets: Iterable[str] = ()
    parent_run: str | None = None
    rows: dict[str, StageRow] = field(init=False)

    def __post_init__(self) -> None:
        names = self.graph.names(self.targets)
        self.rows = {name: StageRow(name, self.pool_of(name)) for name in names}

    def pool_of(self, stage: str) -> str:
        """Work pool of a stage; all stages of a matrix share one."""
        return self.settings.pools.get(_kind(stage), self.settings.default_pool)

    def ready(self) -> list[ScheduledStage]:
        """Stages that can start now; also marks those that are up to date, restored or blocked."""
        found = []
        for row in self.rows.values():
            if row.state != "waiting":
                continue
            before = [self.rows[name].state for name in self.graph.upstream(row.stage)]
            if any(state in _BAD for state in before):
                row.state, row.reason = "blocked", "a stage before it failed"
            elif all(state in _GOOD for state in before) and self._must_run(row):
                found.append(self._dispatch(row))
        return found

    def mark_finished(self, scheduled: ScheduledStage, outcome: StageOutcome) -> None:
        """Merge the result; retry a crashed stage, as often as params.yaml allows.

        Stages that do not depend on a failed one still run.
        """
        row = self.rows[scheduled.order.stage]
        if outcome.result is not None:
            self._merge(row, outcome.result)
        elif outcome.retryable and row.attempts < self.settings.attempts:
            log.warning("%s: attempt %d: %s", row.stage, row.attempts, outcome.reason)
            row.state = "waiting"
        else:
            tries = f" ({row.attempts} attempts)" if outcome.retryable else ""
            row.state, row.reason = "failed", outcome.reason + tries

    def _merge(self, row: StageRow, result: StageResult) -> None:
        self.graph.merge(row.stage, result.entry)
        row.result = result
        reason = self.graph.status(row.stage).reason
        if reason is None:
            row.state = "ran"
        else:
            row.state, row.reason = "failed", f"ran, but then {reason}"

    @property
    def succeeded(self) -> bool:
        """Whether every stage is up to date."""
        return all(row.state in _GOOD for row in self.rows.values())

    def _must_run(self, row: StageRow) -> bool:
        status = self.graph.status(row.stage)
        if status.reason is None:
            row.state = "unchanged"
            return False
        row.key = status.key
        if self._restore(row):
            return False
        row.reason = row.reason or status.reason
        return True

    def _restore(self, row: StageRow) -> bool:
        """Use the result of an earlier run with the same inputs, if its data still exist."""
        result = self.result_store.find(row.stage, row.key)
        if result is None:
            return False
        self.graph.merge(row.stage, result.entry)
        if self.graph.status(row.stage).reason is not None:
            self.result_store.drop(row.stage, row.key)
            return False
        row.state, row.result = "restored", result
        return True

    def _dispatch(self, row: StageRow) -> ScheduledStage:
        row.state, row.attempts = "running", row.attempts + 1
        shards = self.settings.extract_shards
        spread = shards.count > 1 and _kind(row.stage) == _SHARDED
        order = StageRequest(
            row.stage,
            self.rev,
            self.graph.locks(),
            self.settings.stage_timeout_s,
            shards.model_dump() if spread else None,
            self.parent_run,
        )
        return ScheduledStage(order, row.pool, row.key)


def _kind(stage: str) -> str:
    """Name in dvc.yaml, without file and matrix value."""
    return stage.rpartition(":")[2].partition("@")[0]
