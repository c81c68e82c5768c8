"""A search with local worker processes, in the repository of the current folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import BaseStorage

from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import ConfigError, TuningError
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.run import PARENT, TrackedRun, open_run
from mrmodel.tune.report import record_search
from mrmodel.tune.result import SearchResult
from mrmodel.tune.search import SearchContext, search
from mrmodel.tune.space import changed_config
from mrmodel.tune.storage import open_storage, storage_address
from mrmodel.tune.study import TrialQueue
from mrmodel.tune.worker_pool import LocalWorkerPool


def search_here(config: Config, paths: Paths, reporter: Reporter) -> SearchResult:
    """Start or resume; raises as `search.search`, and if another process runs this search."""
    address, folder = storage_address(paths.state), paths.state / "tune" / config.tune.study
    with alone(folder), open_search_record(config, paths) as record:
        run_id, workers = record.run_id(), config.tune.workers
        worker_pool = LocalWorkerPool(address, folder / "workers", run_id, workers)
        storage = open_storage(address)
        store = str((paths.state / "tune").resolve())
        try:
            result = search(
                config, SearchContext(storage, store, worker_pool, SearchProgress(record, reporter))
            )
        finally:
            reporter.finish()
        record_search(record, TrialQueue(storage, config.tune.study), result, paths)
    return result


def resumed_config(
    storage: BaseStorage, name: str, trials: int | None, workers: int | None
) -> Config:
    """The configuration of a study, with `trials` and `workers` replaced if given.

    Raises:
        TuningError: there is no such study, or an incompatible version created it.
    """
    study = TrialQueue(storage, name)
    try:
        config = parse_config(study.facts.config)
    except ConfigError as error:
        rule = f"an earlier version began it, with parameters that are refused now ({error.path})"
        what_now = "begin another: mrmodel tune run --study NAME"
        raise TuningError(f"the search {name!r} cannot go on: {rule}; {what_now}") from None
    # The study may have been extended since it was created.
    trials = trials or max(config.tune.trials, study.live())
    return with_extent(config, trials=trials, workers=workers)


def with_extent(config: Config, **extent: str | int | None) -> Config:
    """`config` with other values in its section `tune`; None: unchanged.

    Raises:
        ConfigError: a value is invalid.
    """
    changes = {f"tune.{key}": value for key, value in extent.items() if value is not None}
    return changed_config(config.model_dump(), changes)


@contextmanager
def open_search_record(config: Config, paths: Paths) -> Iterator[TrackedRun]:
    """The MLflow run of a search; its trials are child runs."""
    spec = RunSpec(
        experiment=config.tracking.experiment,
        state=str(paths.state.resolve()),
        name="tune",
        title=f"tune {config.tune.study}",
        code=str(paths.root.resolve()),
        parent=os.environ.get(PARENT),
    )
    with open_run(config.tracking, spec) as record:
        record.params({"tune": config.tune.model_dump()})
        yield record


class SearchProgress:
    """Reports the progress of a search's studies to reporter and MLflow run."""

    def __init__(self, record: TrackedRun, reporter: Reporter) -> None:
        self._record, self._reporter = record, reporter
        self._study, self._done = "", 0

    def __call__(self, study: TrialQueue) -> None:
        """Report a study."""
        done = len(study.done())
        if study.name != self._study:
            if self._study:
                self._reporter.finish()
            self._study, self._done = study.name, 0
            self._reporter.start(study.name, study.live())
        if done == self._done:
            return
        best = study.best_value()
        shown = {} if best is None else {"best": best}
        self._reporter.advance(done - self._done, **shown)
        self._done = done
        if best is not None:
            level = study.name.split(".")[1:2] or ["search"]
            self._record.log({f"best/{level[0]}": best}, done)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock for the search of a folder, for the processes of this machine.

    Raises:
        TuningError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            rule = "is being carried out by another process of this machine"
            raise TuningError(f"the search {folder.name!r} {rule}") from None
        yield
