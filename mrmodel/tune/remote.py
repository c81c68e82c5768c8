"""A search for better values of a revision, on workers that share no folder with this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dvc.repo import Repo
from optuna.storages import BaseStorage

from mrmodel.config.schema import Config
from mrmodel.errors import ConfigError
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.orchestrate.run_branch import PARAMS, RunBranch, workspace
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.tune import report
from mrmodel.tune.apply import apply_changes
from mrmodel.tune.local import (
    PATIENCE_S,
    Progress,
    alone,
    open_search_record,
    resumed_config,
    with_extent,
)
from mrmodel.tune.objective import job_of
from mrmodel.tune.report import record_search, report_part
from mrmodel.tune.result import SearchResult
from mrmodel.tune.search import SearchContext, search
from mrmodel.tune.storage import VARIABLE, open_storage, storage_address
from mrmodel.tune.study import TrialQueue
from mrmodel.tune.worker_pool import TrialWorkerPool


@dataclass(frozen=True, slots=True)
class SearchOverrides:
    """What may be asked of a search; None: as params.yaml says, or as the study began.

    Attributes:
        study: its name.
        trials: so many end.
        workers: so many at once.
    """

    study: str | None = None
    trials: int | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class RevisionSearch:
    """What whoever starts workers needs to know.

    Attributes:
        rev: commit that they clone.
        config: of the search.
        parent_run: MLflow's id of the run of the search; None: it has none.
    """

    rev: str
    config: Config
    parent_run: str | None


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """How a search on workers ended.

    Attributes:
        study: its name.
        verdict: what it found.
        branch: with the better values in params.yaml; None: nothing is better.
        lines: how many trials of each step ended how, and the verdict in words.
    """

    study: str
    verdict: SearchResult
    branch: str | None
    lines: list[str]


def search_revision(
    places: RuntimeEnvironment,
    rev: str,
    overrides: SearchOverrides,
    hire: Callable[[RevisionSearch], TrialWorkerPool],
    reporter: Reporter,
) -> SearchOutcome:
    """Begin a search, or go on with the one of that name.

    Args:
        places: where repository, data and results are.
        rev: what is tuned; its dvc.lock names the data.
        overrides: the extent.
        hire: makes the crew.
        reporter: told how far it is.

    Raises:
        ConfigError: workers could not reach the trials, or as `search.search`.
        OrchestrationError: the revision or its data cannot be had.
        TuningError: another process is at it, or as `search.search`.
    """
    storage = open_storage(shared_storage_address(places))
    # A search reads annotations below the current folder.
    with workspace(places, rev) as clone, chdir(clone.folder):
        config = config_of(storage, clone.config, overrides)
        paths, name = Paths(config), config.tune.study
        with alone(places.state / "tune" / name), open_search_record(config, paths) as record:
            fetch_annotations(places, config)
            crew = hire(RevisionSearch(clone.rev, config, record.run_id(PATIENCE_S)))
            store = f"{places.handover.rstrip('/')}/tune"
            verdict = search(
                config, SearchContext(storage, store, crew, Progress(record, reporter))
            )
            study = TrialQueue(storage, name)
            record_search(record, study, verdict, paths)
        branch = publish(clone, study, verdict)
        return SearchOutcome(name, verdict, branch, list(report.lines(study)))


def shared_storage_address(places: RuntimeEnvironment) -> str:
    """Address of the storage that all workers reach.

    Raises:
        ConfigError: workers have folders of their own, and no database is named; or a file is.
    """
    address = storage_address(places.state)
    if places.remote is not None and urlsplit(address).scheme in ("", "sqlite"):
        rule = "names no database; workers that share no folder keep their trials in one, e.g. "
        raise ConfigError(VARIABLE, None, f"{rule}postgresql://user:password@host/optuna")
    return address


def config_of(storage: BaseStorage, config: Config, overrides: SearchOverrides) -> Config:
    """The configuration of the search: that of the study, or of the revision for a new one."""
    name = overrides.study or config.tune.study
    if TrialQueue.exists(storage, name):
        return resumed_config(storage, name, overrides.trials, overrides.workers)
    return with_extent(config, study=name, trials=overrides.trials, workers=overrides.workers)


def fetch_annotations(places: RuntimeEnvironment, config: Config) -> None:
    """What the search itself reads: the rows, of which it counts steps and judges choices."""
    job = job_of(config, Path(), "", config.seed)
    transfer = Transfer(places, ResultStore(places.handover, places.endpoint))
    transfer.fetch(Repo(), [str(path) for path in (job.train, job.val)])


def publish(clone: RunBranch, study: TrialQueue, verdict: SearchResult) -> str | None:
    """Push a branch with the better values and the part of the report; None: nothing is better.

    Raises:
        TuningError: the revision has another value in one of these places than the search began
            with.
    """
    changes = verdict.changes
    if not changes:
        return None
    apply_changes(clone.folder / PARAMS, study, changes)
    said = ", ".join(f"{path} = {value}" for path, value in changes.items())
    paths = [PARAMS, str(report_part(study.name))]
    changed = clone.publish(paths, f"Parameters that {study.name} found: {said}")
    return clone.branch if changed else None
