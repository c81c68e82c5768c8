"""What carrying out a search costs: trials an hour by workers, and seconds a trial beside its work.

``python -m benchmarks.search`` takes trials that sleep. ``--real`` takes trainings instead, in a
repository whose pipeline has run (`make repro`): the same trials by one and by two processes, one
thread each, without pruning. Starting the processes is counted everywhere.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from optuna.pruners import BasePruner, NopPruner

from benchmarks.common import report
from mrmodel import presets
from mrmodel.config.schema import Config, load_config, parse_config
from mrmodel.files import parse_yaml
from mrmodel.stages.paths import Paths
from mrmodel.tracking.run import current_run
from mrmodel.tune.local import open_search_record
from mrmodel.tune.search import SearchContext, open_search
from mrmodel.tune.space import changed_config, training_plan
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Facts, TrialQueue
from mrmodel.tune.worker import ClaimedTrial, TrialResult
from mrmodel.tune.worker_pool import LocalWorkerPool, follow

# Below a second a trial would be mostly machinery, and most of a search's trials take minutes.
SLEEP_S = 1.0
EPOCHS = 20


class Sleeping:
    """Sleeps as long as a trial shall take, with a run of its own and a curve in MLflow."""

    def __init__(self, facts: Facts) -> None:
        self._seconds: float = facts.about["seconds"]

    @property
    def pruner(self) -> BasePruner:
        """None is given up."""
        return NopPruner()

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        """Report a curve, then sleep."""
        values = [claimed.trial.suggest_float(f"x{number}", 0.0, 1.0) for number in range(12)]
        with current_run().child_run(f"trial-{claimed.origin}") as record:
            record.params({"x": values})
            for epoch in range(1, EPOCHS + 1):
                claimed.trial.report(values[0] * epoch, epoch)
                record.log({"val/figure": values[0] * epoch}, epoch)
            time.sleep(self._seconds)
        return TrialResult([values[0]])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, help="[default: 160; trainings: 6]")
    parser.add_argument("--real", action="store_true", help="trainings instead of sleep")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    found = real(options.trials or 6) if options.real else sleeping(options.trials or 160)
    report(found, options.json)


def sleeping(trials: int) -> dict[str, Any]:
    """Wall time of sleeping trials by one process and by four; what a trial costs besides."""
    seconds = {workers: sleep_search(trials, workers, SLEEP_S) for workers in (1, 4)}
    return {
        "benchmark": "search",
        "trials": trials,
        "sleep_s": SLEEP_S,
        "cores": os.cpu_count(),
        "one_process_s": round(seconds[1], 1),
        "four_processes_s": round(seconds[4], 1),
        "ratio": round(seconds[1] / seconds[4], 2),
        # Storage, record, start of the process, and looking for the end of it.
        "overhead_s_per_trial": round(seconds[1] / trials - SLEEP_S, 3),
    }


def sleep_search(trials: int, workers: int, seconds: float) -> float:
    """Seconds from the start of the first worker to the end of the last one."""
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name:
        folder = Path(name)
        config = parse_config(parse_yaml(presets.render("sample")))
        place = f"{__spec__.name if __spec__ else __name__}:{Sleeping.__name__}"
        facts = Facts(place, config.model_dump(), {"seconds": seconds}, name, "benchmark", 3)
        address = str(folder / "journal.log")
        study = TrialQueue.create(open_storage(address), "sleep", facts, 1, 0)
        study.fill(trials)
        paths = Paths(config, folder)
        with open_search_record(config, paths) as record:
            worker_pool = LocalWorkerPool(address, folder / "workers", record.run_id(60.0))
            started = time.perf_counter()
            follow(study, worker_pool, workers, lambda: None)
            return time.perf_counter() - started


def real(trials: int) -> dict[str, Any]:
    """Wall time of the same trainings by one process and by two."""
    config = load_config(Path("params.yaml"))
    quiet = {"tune.prune.enabled": False, "tune.trials": trials, "tracking.enabled": False}
    config = changed_config(config.model_dump(), quiet)
    seconds = {workers: real_search(config, workers) for workers in (1, 2)}
    return {
        "benchmark": "search --real",
        "trials": trials,
        "model": config.train.models[0],
        "dimensions": len(training_plan(config).space),
        "cores": os.cpu_count(),
        "one_process_s": round(seconds[1], 1),
        "two_processes_s": round(seconds[2], 1),
        "ratio": round(seconds[1] / seconds[2], 2),
    }


def real_search(config: Config, workers: int) -> float:
    """Seconds of a search without its confirmation; the same draws whatever the workers."""
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name:
        address = str(Path(name) / "journal.log")
        worker_pool = LocalWorkerPool(address, Path(name) / "workers", None)
        storage = open_storage(address)
        # One thread a process in both, which is what two processes have on two cores.
        one_thread = changed_config(config.model_dump(), {"train.threads": 1, "tune.workers": 1})
        study = open_search(one_thread, SearchContext(storage, name, worker_pool, lambda _: None))
        started = time.perf_counter()
        follow(study, worker_pool, workers, lambda: None)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
