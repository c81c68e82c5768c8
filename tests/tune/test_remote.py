"""A search of a revision whose workers have clones and data of their own, without Prefect."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from mrmodel import presets
from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, TuningError
from mrmodel.files import write_json
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import workspace
from mrmodel.processes import Ended, run_python
from mrmodel.progress import NullReporter
from mrmodel.tune.remote import (
    RevisionSearch,
    SearchOutcome,
    SearchOverrides,
    publish,
    search_revision,
    shared_storage_address,
)
from mrmodel.tune.report import report_part, sentence, summary_of
from mrmodel.tune.result import Confirmed, Gain, SearchResult
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Facts, Owner, TrialQueue
from mrmodel.tune.worker_pool import WorkerHandle, WorkerOutcome, is_gone_from_here
from tests.project import Project

# From fresh weights: the paper's smaller learning rate is above the starting point then.
CHANGES = {
    "tune": {
        "run": "scratch",
        "trials": 2,
        "workers": 1,
        "confirm": {"best": 1, "seeds": 1},
        "post_hoc": {"trials": 2},
    },
    "tracking": {"enabled": False},
}


class ClonePool:
    """What flow runs do, in threads."""

    def __init__(self, environment: RuntimeEnvironment, work: RevisionSearch) -> None:
        self._environment, self._work, self._pool = environment, work, ThreadPoolExecutor()
        self.data: list[set[str]] = []

    def earlier(self, study: str) -> Sequence[WorkerHandle]:
        return ()

    def start(self, study: str) -> WorkerHandle:
        label = uuid4().hex
        return CloneHand(label, self._pool.submit(self._run, study, label))

    def is_lost(self, owner: Owner) -> bool:
        return is_gone_from_here(owner)

    def _run(self, study: str, label: str) -> Ended:
        with fresh_clone(self._environment, self._work.rev, {}) as clone:
            ended = run_python(
                "mrmodel.tune.worker",
                study,
                "--owner",
                label,
                "--fetch",
                folder=clone,
                on_line=print,
            )
            names = ("data/*/*", "features/*/*", "models/*/*")
            self.data.append({str(p.relative_to(clone)) for n in names for p in clone.glob(n)})
            return ended


class CloneHand:
    """One of them."""

    def __init__(self, label: str, future: Future[Ended]) -> None:
        self.label, self._future = label, future

    def outcome(self) -> WorkerOutcome | None:
        if not self._future.done():
            return None
        ended = self._future.result()
        return WorkerOutcome("\n".join(ended.last) if ended.code else "", failed=ended.code > 0)

    def stop(self) -> None:
        self._future.result()


@pytest.fixture(scope="module")
def project(reproduced: Project) -> Project:
    """Its lock file is in git, and a search of it takes seconds."""
    text = reproduced.read("params.yaml").decode()
    changed = presets.overlay(text, CHANGES)
    (reproduced.folder / "params.yaml").write_text(changed)
    reproduced.git("add", "dvc.lock", "params.yaml")
    reproduced.git("commit", "-q", "-m", "results")
    return reproduced


@pytest.fixture
def environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> RuntimeEnvironment:
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    return RuntimeEnvironment.from_environment({"MRMODEL_GIT_URL": str(project.folder)})


def study_of(environment: RuntimeEnvironment, name: str) -> TrialQueue:
    return TrialQueue(open_storage(shared_storage_address(environment)), name)


def assert_published(found: SearchOutcome, project: Project) -> None:
    """A branch holds the better values, and there is one only for these."""
    assert (found.branch is not None) == bool(found.result.changes)
    if found.branch is not None:
        text = project.git("show", f"{found.branch}:params.yaml")
        before = project.git("show", "HEAD:params.yaml")
        assert text != before
        parse_config(yaml.safe_load(text))


@pytest.mark.services
def test_workers_in_clones_search_and_confirm(
    environment: RuntimeEnvironment, project: Project
) -> None:
    pools = []

    def open_pool(work: RevisionSearch) -> ClonePool:
        pools.append(ClonePool(environment, work))
        return pools[-1]

    found = search_revision(
        environment, "HEAD", SearchOverrides(study="clones"), open_pool, NullReporter()
    )
    study = study_of(environment, "clones")
    confirmation, post_hoc = study.later()
    counts = [Counter(trial.state.name for trial in one.trials()) for one in (study, confirmation)]
    assert [count.total() for count in counts] == [2, 2]
    assert set().union(*counts) <= {"COMPLETE", "PRUNED"}
    assert len(post_hoc.done()) == 2
    assert_published(found, project)
    assert not list(environment.clones.glob("*"))

    (worker_pool,) = pools
    rows = {"data/miniature/train.jsonl", "data/miniature/val.jsonl"}
    features = {"features/miniature/tiny.video", "features/miniature/tiny.text"}
    judged = {"data/miniature/val.jsonl"}
    assert worker_pool.data == [rows | features, rows | features, judged]


def test_better_values_come_as_a_branch(environment: RuntimeEnvironment, project: Project) -> None:
    study = make_study(environment, project)
    name = "train.finetune.lr"
    gain = Gain(difference=3.0, low=1.0, high=5.0)
    candidates = [
        Confirmed(trial=None, changes={}, values=[1.0], gain=None),
        Confirmed(trial=2, changes={name: 0.00123}, values=[4.0], gain=gain),
    ]
    result = SearchResult(
        figure="mAP",
        start=1.0,
        best=4.0,
        trials=3,
        seeds=[1],
        candidates=candidates,
        after_training=None,
    )
    part = report_part(study.name)
    with workspace(environment, "HEAD") as clone:
        write_json(clone.folder / part, summary_of(study, result))
        branch = publish(clone, study, result)
    assert json.loads(project.git("show", f"{branch}:{part}"))["sentence"] == sentence(result)
    changed = yaml.safe_load(project.git("show", f"{branch}:params.yaml"))
    before = yaml.safe_load(project.git("show", "HEAD:params.yaml"))
    assert changed["train"]["finetune"].pop("lr") == 0.00123
    assert before["train"]["finetune"].pop("lr") != 0.00123
    assert changed == before
    assert "train.finetune.lr = 0.00123" in project.git("log", "-1", "--format=%s", str(branch))

    refused = result.model_copy(update={"candidates": candidates[:1]})
    with workspace(environment, "HEAD") as clone:
        assert publish(clone, study, refused) is None
        assert clone.branch not in project.git("branch", "--list", "runs/*")


def make_study(environment: RuntimeEnvironment, project: Project) -> TrialQueue:
    """A study that began with the project's parameters."""
    config = parse_config(yaml.safe_load(project.read("params.yaml"))).model_dump()
    facts = Facts("none:Objective", config, {}, "unused", "tune", 3)
    return TrialQueue.create(
        open_storage(shared_storage_address(environment)), "published", facts, 1, 7
    )


def test_one_search_of_a_name_at_a_time(environment: RuntimeEnvironment) -> None:
    def open_pool(work: RevisionSearch) -> ClonePool:
        with pytest.raises(TuningError, match="another process"):
            search_revision(
                environment, "HEAD", SearchOverrides(study="twice"), open_pool, NullReporter()
            )
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_revision(
            environment, "HEAD", SearchOverrides(study="twice"), open_pool, NullReporter()
        )


def test_a_name_that_is_none(environment: RuntimeEnvironment) -> None:
    with pytest.raises(ConfigError, match=r"tune\.study"):
        search_revision(
            environment, "HEAD", SearchOverrides(study="No Name"), pytest.fail, NullReporter()
        )


def test_workers_that_share_nothing_need_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "MRMODEL_GIT_URL": "https://git.example.com/team/mrmodel.git",
        "MRMODEL_DVC_REMOTE": "s3://mrmodel/dvc",
        "MRMODEL_WORK_DIR": str(tmp_path),
    }
    environment = RuntimeEnvironment.from_environment(variables)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    with pytest.raises(ConfigError, match="OPTUNA_STORAGE"):
        shared_storage_address(environment)
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///here.db")
    with pytest.raises(ConfigError, match="OPTUNA_STORAGE"):
        shared_storage_address(environment)
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://user@host/optuna")
    assert shared_storage_address(environment) == "postgresql://user@host/optuna"
