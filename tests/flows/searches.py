"""What tests of searches on workers look at."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import psutil
import yaml
from optuna import get_all_study_names
from optuna.trial import TrialState

from mrmodel.tune.result import value_at
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import TrialQueue, owner_of
from tests.flows.conftest import Site


def open_study(site: Site, name: str) -> TrialQueue:
    """A study of the site's workers."""
    return TrialQueue(open_storage(site.environment["OPTUNA_STORAGE"]), name)


def working(site: Site, start: str) -> psutil.Process:
    """A worker in the middle of a trial, once one has a trial of a study so named."""
    storage = open_storage(site.environment["OPTUNA_STORAGE"])

    def found() -> psutil.Process | None:
        names = [name for name in get_all_study_names(storage) if name.startswith(start)]
        studies = [TrialQueue(storage, name) for name in names]
        running = [owner_of(trial) for one in studies for trial in one.trials(TrialState.RUNNING)]
        pids = [int(owner.process.partition(":")[0]) for owner in running if owner is not None]
        return psutil.Process(pids[0]) if pids else None

    process: psutil.Process = site.wait_until(found, 240)
    return process


def states_of(study: TrialQueue) -> Counter[str]:
    """How many trials ended how."""
    return Counter(trial.state.name for trial in study.trials())


def assert_right_end(site: Site, output: str, changes: dict[str, Any]) -> None:
    """A branch with the better values, or the word that there are none."""
    if not changes:
        assert "NotBetter: nothing was confirmed to be better" in output
        return
    (branch,) = re.findall(r"^Better: .*; branch (runs/\S+)$", output, flags=re.MULTILINE)
    tuned = yaml.safe_load(site.project.git("show", f"{branch}:params.yaml"))
    for path, value in changes.items():
        assert value_at(tuned, path) == value
