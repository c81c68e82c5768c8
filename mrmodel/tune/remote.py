"""Hyperparameter search for a revision, on workers that share no folder with this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass

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
from mrmodel.tune.local import (
    SearchProgress,
    alone,
    open_search_record,
    resumed_config,
    with_extent,
)
from mrmodel.tune.objective import annotations_of
from mrmodel.tune.report import record_search, report_part
from mrmodel.tune.result import SearchResult, apply_changes
from mrmodel.tune.search import SearchContext, search
from mrmodel.tune.storage import VARIABLE, open_storage, storage_address, storage_scheme
from mrmodel.tune.study import TrialQueue
from mrmodel.tune.worker_pool import TrialWorkerPool


@dataclass(frozen=True, slots=True)
class SearchOverrides:
    """Overrides of a search; None: as in params.yaml, or as the study was created.

    Attributes:
        study: its name.
        trials: total number.
        workers: maximum number in parallel.
    """

    study: str | None = None
    trials: int | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class RevisionSearch:
    """Information needed to start workers.

    Attributes:
        rev: commit that they clone.
        config: of the search.
        parent_run: id of the search's MLflow run; None: it has none.
    """

    rev: str
    config: Config
    parent_run: str | None


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """How a search on workers ended.

    Attributes:
        study: its name.
        result: what was found.
        branch: run branch with the better values in params.yaml; None: nothing is better.
        lines: number of trials per step and state, and the result, as text.
    """

    study: str
    result: SearchResult
    branch: str | None
    lines: list[str]


def search_revision(
    environment: RuntimeEnvironment,
    rev: str,
    overrides: SearchOverrides,
    open_pool: Callable[[RevisionSearch], TrialWorkerPool],
    reporter: Reporter,
) -> SearchOutcome:
    """Start a search, or resume the one of that name.

    Args:
        environment: where repository, data and results are.
        rev: what is tuned; its dvc.lock determines the data.
        overrides: number of trials and workers.
        open_pool: creates the worker pool.
        reporter: receives the progress.

    Raises:
        ConfigError: workers could not reach the storage, or as `search.search`.
        OrchestrationError: the revision or its data are not available.
        TuningError: another process runs this search, or as `search.search`.
    """
    storage = open_storage(shared_storage_address(environment))
    # A search reads annotations relative to the current folder.
    with workspace(environment, rev) as clone, chdir(clone.folder):
        config = config_of(storage, clone.config, overrides)
        paths, name = Paths(config), config.tune.study
        with alone(environment.state / "tune" / name), open_search_record(config, paths) as record:
            fetch_annotations(environment, config)
            worker_pool = open_pool(RevisionSearch(clone.rev, config, record.run_id()))
            store = f"{environment.result_store.rstrip('/')}/tune"
            result = search(
                config, SearchContext(storage, store, worker_pool, SearchProgress(record, reporter))
            )
            study = TrialQueue(storage, name)
            record_search(record, study, result, paths)
        branch = publish(clone, study, result)
        return SearchOutcome(name, result, branch, list(report.lines(study)))


def shared_storage_address(environment: RuntimeEnvironment) -> str:
    """URL of the storage that all workers reach.

    Raises:
        ConfigError: workers do not share a folder, and no database is configured, or only a file.
    """
    address = storage_address(environment.state)
    kind = storage_scheme(address).partition("+")[0]
    if environment.remote is not None and kind in ("", "sqlite"):
        rule = "names no database; workers that share no folder keep their trials in one, e.g. "
        raise ConfigError(VARIABLE, None, f"{rule}postgresql+psycopg2://user:password@host/optuna")
    return address


def config_of(storage: BaseStorage, config: Config, overrides: SearchOverrides) -> Config:
    """The configuration of the search: that of the study, or of the revision for a new one."""
    name = overrides.study or config.tune.study
    if TrialQueue.exists(storage, name):
        return resumed_config(storage, name, overrides.trials, overrides.workers)
    return with_extent(config, study=name, trials=overrides.trials, workers=overrides.workers)


def fetch_annotations(environment: RuntimeEnvironment, config: Config) -> None:
    """Fetch what the search itself reads: annotations, to count steps and evaluate decoding."""
    transfer = Transfer(environment, ResultStore(environment.result_store, environment.endpoint))
    transfer.fetch(Repo(), [str(path) for path in annotations_of(config)])


def publish(clone: RunBranch, study: TrialQueue, result: SearchResult) -> str | None:
    """Push a branch with the better values and the report section; None: nothing is better.

    Raises:
        TuningError: the revision has another value in one of these places than the search started
            with.
    """
    changes = result.changes
    if not changes:
        return None
    apply_changes(clone.folder / PARAMS, study, changes)
    said = ", ".join(f"{path} = {value}" for path, value in changes.items())
    paths = [PARAMS, str(report_part(study.name))]
    changed = clone.publish(paths, f"Parameters that {study.name} found: {said}")
    return clone.branch if changed else None
