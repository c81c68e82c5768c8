"""Workers of a search that are flow runs on a work pool."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, State, StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.watch import POLL_S, Watch
from mrmodel.files import digest_of
from mrmodel.tune.crew import Ending, Hand, is_gone_from_here
from mrmodel.tune.revision import Work
from mrmodel.tune.study import Owner


class FlowCrew:
    """Flow runs of ``tune-worker/<pool>``, each with its worker's label as its name.

    Args:
        client: of the server.
        work: what they do.
        pool: work pool; None: that of the stage that is tuned.
        handover: address of the project's store, which tells its searches from others' on the
            same server.
    """

    def __init__(
        self, client: SyncPrefectClient, work: Work, pool: str | None, handover: str
    ) -> None:
        settings = work.config.orchestrate
        self._client, self._work, self._handover = client, work, handover
        self._pool = pool or settings.pools.get(work.config.tune.run, settings.default_pool)

    def earlier(self, study: str) -> Sequence[Hand]:
        """Flow runs for a study that have not ended: their orchestration has."""
        living = [kind for kind in StateType if kind not in TERMINAL_STATES]
        wanted = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[self._tag(study)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=living)),
        )
        return [self._hand(found) for found in self._client.read_flow_runs(flow_run_filter=wanted)]

    def start(self, study: str) -> Hand:
        """Ask the pool for one more."""
        label = f"{study}-{uuid4().hex[:12]}"
        order = {
            "study": study,
            "rev": self._work.rev,
            "owner": label,
            "parent_run": self._work.parent_run,
        }
        flow_run: FlowRun = run_deployment(  # type: ignore[assignment]
            f"tune-worker/{self._pool}",
            parameters=order,
            flow_run_name=label,
            tags=[self._tag(study)],
            idempotency_key=label,
            timeout=0,
        )
        return self._hand(flow_run)

    def is_lost(self, owner: Owner) -> bool:
        """Whether the flow run of that name has ended, or the process of a search without flows."""
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=[owner.label]))
        found = self._client.read_flow_runs(flow_run_filter=wanted)
        if not found:
            return is_gone_from_here(owner)
        return all(one.state is not None and one.state.is_final() for one in found)

    def _tag(self, study: str) -> str:
        return f"{study}@{digest_of(self._handover)[:8]}"

    def _hand(self, flow_run: FlowRun) -> Hand:
        timeout_s = self._work.config.orchestrate.start_timeout_s
        watch = Watch(flow_run.id, self._client, self._pool, timeout_s)
        return FlowHand(flow_run.name, watch, self._client)


class FlowHand:
    """One flow run.

    Args:
        label: its name.
        watch: on it.
        client: of the server.
    """

    def __init__(self, label: str, watch: Watch, client: SyncPrefectClient) -> None:
        self._label, self._watch, self._client = label, watch, client
        self._looked = 0.0
        self._ending: Ending | None = None

    @property
    def label(self) -> str:
        """Its name."""
        return self._label

    def ending(self) -> Ending | None:
        """How it ended; the server is asked every two seconds."""
        if self._ending is None and time.monotonic() - self._looked > POLL_S:
            self._looked = time.monotonic()
            state = self._watch.look()
            self._ending = None if state is None else ending_of(state)
        return self._ending

    def stop(self) -> None:
        """Ask its worker to end it."""
        self._client.set_flow_run_state(self._watch.flow_run, Cancelling())


def ending_of(state: State[Any]) -> Ending:
    """What a final state means for the search: a worker that crashed is replaced."""
    if state.is_completed():
        return Ending()
    return Ending(state.message or state.name or "it ended", failed=state.is_failed())
