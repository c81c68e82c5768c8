"""Rounds of shards: which are made next, until all are in the store or one has failed for good."""

from __future__ import annotations

import logging

from mrmodel.orchestrate.sharded import ShardedStream, ShardFailed, ShardInterrupted, ShardOrder
from mrmodel.orchestrate.shards import ShardReport, find_report
from mrmodel.storage import Store

log = logging.getLogger(__name__)

_SHOWN_PROBLEMS = 100


class ShardRounds:
    """Each round is a fresh pool of workers: a pool whose process was killed is of no more use.

    Args:
        sharded: the stream.
        store: where the shards are.
        attempts: rounds that may begin, at least one.

    Attributes:
        reports: index -> report, of the shards that are in the store.
    """

    def __init__(self, sharded: ShardedStream, store: Store, attempts: int) -> None:
        self.reports: dict[int, ShardReport] = {}
        self._attempts = attempts
        self._left: dict[int, ShardOrder] = {}
        self._interrupted: dict[int, str] = {}
        self._failed: dict[int, str] = {}
        for order in sharded.orders():
            found = find_report(order, store)
            if found is not None:
                self.reports[order.index] = found
            if found is None or found.summary.passing:
                self._left[order.index] = order

    def next(self) -> list[ShardOrder]:
        """Shards to make now; none when all are made.

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

    def made(self, order: ShardOrder, report: ShardReport) -> None:
        """A shard is in the store."""
        self.reports[order.index] = report
        del self._left[order.index]
        self._interrupted.pop(order.index, None)

    def broke(self, order: ShardOrder, error: BaseException) -> None:
        """A shard ended with an error; only `ShardFailed` says that trying again is of no use."""
        if isinstance(error, ShardFailed):
            self._failed[order.index] = str(error)
            return
        known = isinstance(error, ShardInterrupted)
        reason = str(error) if known else f"{order}: {type(error).__name__}: {error}"
        log.warning(reason)
        self._interrupted[order.index] = reason


def shards_markdown(reports: list[ShardReport]) -> str:
    """A table of shards, and the videos that gave less than all, for a person."""
    rows = [
        "| shard | worker | videos | ok | partial | failed | resumed | rows | seconds |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    problems: list[str] = []
    for report in reports:
        one = report.summary
        counts = (one.n_items, one.n_ok, one.n_partial, one.n_failed, one.n_resumed, one.n_rows)
        figures = " | ".join(map(str, counts))
        rows.append(f"| {report.index} | {report.worker} | {figures} | {one.wall_s:.1f} |")
        problems += [f"* `{key}`: {reason}" for key, reason in sorted(one.problems.items())]
    if len(problems) > _SHOWN_PROBLEMS:
        problems[_SHOWN_PROBLEMS:] = [f"* and {len(problems) - _SHOWN_PROBLEMS} more"]
    return "\n".join([*rows, "", *problems]).rstrip() + "\n"
