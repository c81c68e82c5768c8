"""A whole search on the miniature corpus: offline, on validation data alone, with real trainings.

The long proof (`slow`) is a search of twenty trials on the sample corpus.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mrmodel.config.schema import load_config
from mrmodel.report.studies import REPORTS
from mrmodel.stages.report import search_sections
from mrmodel.tune.result import SearchResult, read_result
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import TrialQueue
from tests.docs.test_commands import commands_of
from tests.project import Project

# It begins with a learning rate at which nothing is learnt, so there is something to find.
TUNE: dict[str, Any] = {
    "model": "qd_detr",
    "run": "scratch",
    "trials": 4,
    "workers": 1,
    "confirm": {"best": 1, "seeds": 2},
    "post_hoc": {"trials": 3},
    "space": {"train.run.lr": {"low": 1e-7, "high": 5e-3}},
}
SCRATCH = {"steps": 18, "lr": 1e-7, "warmup": 2, "select": "last"}
TRAIN = {"pretrain": {"steps": 9}, "finetune": {"steps": 9}, "scratch": SCRATCH}
CHANGES = {"tune": TUNE, "train": TRAIN, "tracking": {"enabled": True}}


def study_of(project: Project, name: str = "main") -> TrialQueue:
    return TrialQueue(open_storage(str(project.folder / ".mrmodel/tune/journal.log")), name)


def states(study: TrialQueue) -> Counter[str]:
    return Counter(trial.state.name for trial in study.trials())


@pytest.fixture(scope="module")
def project(reproduced: Project) -> Project:
    """The pipeline has run; the test split is gone, so that nobody can look at it."""
    reproduced.apply("miniature", CHANGES)
    (reproduced.folder / "data/miniature/test.jsonl").rename(reproduced.folder / "test.jsonl")
    return reproduced


@pytest.fixture(scope="module")
def searched(project: Project) -> str:
    """What `mrmodel tune run` said."""
    return project.run("mrmodel", "tune", "run")


@pytest.fixture(scope="module")
def result(project: Project, searched: str) -> SearchResult:
    return read_result(study_of(project))


def test_all_trials_come_to_an_end(project: Project, searched: str) -> None:
    found = states(study_of(project))
    assert set(found) <= {"COMPLETE", "PRUNED"}
    assert sum(found.values()) == 4
    sources = [trial.user_attrs.get("source") for trial in study_of(project).trials()]
    assert sources[:2] == ["params.yaml", "paper"]
    assert "page: reports/tuning/main.html" in searched


def test_the_best_trial_is_above_the_starting_point(result: SearchResult) -> None:
    assert result.start is not None
    assert result.best is not None
    assert result.best > result.start
    assert result.figure == "MR-full-mAP"


def test_the_winner_is_confirmed_or_the_search_says_so(
    project: Project, searched: str, result: SearchResult
) -> None:
    start, candidate = result.candidates
    assert (start.trial, start.changes, start.gain) == (None, {}, None)
    assert len(start.values) == len(candidate.values) == 2
    assert candidate.changes
    assert candidate.gain is not None
    assert candidate.gain.low <= candidate.gain.difference <= candidate.gain.high
    mean = [sum(one.values) / 2 for one in (start, candidate)]
    assert candidate.gain.difference == pytest.approx(mean[1] - mean[0], abs=0.02)
    says = f"trial {candidate.trial} is better" if candidate.gain.is_clear else "no gain is clear"
    assert says in searched
    confirmation, after = study_of(project).later()
    assert states(confirmation) == {"COMPLETE": 4}
    assert states(after) == {"COMPLETE": 3}


def test_trials_are_runs_below_the_run_of_the_search(project: Project, searched: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project.folder / '.mrmodel/mlflow.db'}")
    experiment = client.get_experiment_by_name("mrmodel").experiment_id
    runs = client.search_runs([experiment])
    (whole,) = [run for run in runs if run.info.run_name == "tune main"]
    below = [
        run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id
        and re.match(r"main-\d{4}@", run.info.run_name)
    ]
    assert len(below) == 4
    assert {run.info.status for run in below} == {"FINISHED"}
    pruned = [run for run in below if "stopped" in run.data.tags]
    assert len(pruned) == states(study_of(project))["PRUNED"]
    curve = client.get_metric_history(below[0].info.run_id, "val/MR-full-mAP")
    assert len(curve) > 1
    names = {file.path for file in client.list_artifacts(whole.info.run_id, "views")}
    wanted = ("history", "importance", "parallel_coordinates", "slices", "curves")
    assert {f"views/{name}.svg" for name in wanted} <= names
    assert {"search.html", "trials.json"} <= {
        file.path for file in client.list_artifacts(whole.info.run_id)
    }
    assert whole.data.metrics["best"] >= whole.data.metrics["start"]


def test_the_page_has_verdict_trials_and_views(project: Project, searched: str) -> None:
    page = project.read("reports/tuning/main.html").decode()
    for words in (
        "Verdict",
        "starting point",
        "train.weight_decay",
        "Parallel coordinates",
        "<svg",
    ):
        assert words in page
    assert page.count("<svg") == 5
    assert not re.findall(r"(?:src|href)=\"https?://", page)


def test_the_report_shows_the_search(project: Project, searched: str) -> None:
    assert json.loads(project.read("studies/reports/tune-main.json"))["corpus"] == "miniature"
    config = load_config(project.folder / "params.yaml")
    (section,) = search_sections(config, project.folder / REPORTS)
    assert section.title == "Search “main”"
    assert section.tables
    assert section.charts[0].startswith("<svg")


def test_the_guide_says_what_runs_here() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    applied = Path(__file__).with_name("test_apply.py").read_text(encoding="utf-8")
    for command in commands_of("howto/tune.md"):
        _, *words = command.split()[:3]
        assert ", ".join(f'"{word}"' for word in words) in here + applied, command


def test_nothing_is_left_behind(project: Project, searched: str) -> None:
    state = project.folder / ".mrmodel"
    assert not list((state / "tune/main").glob("[0-9]*"))
    assert not list((state / "resume").glob("main-*"))
    assert not list((state / "tune/main/workers").glob("*"))


def test_status_and_best_tell_the_same(project: Project, result: SearchResult) -> None:
    status = project.invoke("tune", "status")
    assert re.search(r"^main: .*complete", status, re.M)
    assert re.search(r"^main\.confirm\.\w+: 4 complete; best", status, re.M)
    assert "train.run.lr" in project.invoke("tune", "space")
    best = project.invoke("tune", "best", "--top", "1")
    assert f"{result.best:.2f}" in best.splitlines()[0]
    assert "confirmed: starting point" in best


def test_a_second_run_is_refused_and_a_resumed_one_prolongs(
    project: Project, searched: str, result: SearchResult
) -> None:
    output = project.invoke("tune", "run", code=2)
    assert "there is a study 'main' already" in output
    before = {trial.number: trial.params for trial in study_of(project).trials()}
    project.invoke("tune", "resume", "--trials", "5")
    study = study_of(project)
    assert study.live() == len(study.done()) == 5
    assert {trial.number: trial.params for trial in study.trials()[:4]} == before


@pytest.mark.slow
def test_twenty_trials_on_the_sample_corpus(tmp_path: Path) -> None:
    """About half an hour on two cores, rendering and pre-training included."""
    project = Project(tmp_path / "clone")
    tune = {"trials": 20, "workers": 2, "confirm": {"best": 1, "seeds": 3}}
    project.apply("sample", {"tune": tune, "tracking": {"enabled": False}})
    project.commit()
    for stage in ("pretrain@sg_detr", "extract@embedded.motion"):
        project.run("dvc", "repro", stage, patience_s=1800)
    (project.folder / "data/sample/test.jsonl").unlink()
    output = project.run("mrmodel", "tune", "run", patience_s=7200)
    study, result = study_of(project), read_result(study_of(project))
    assert states(study)["COMPLETE"] + states(study)["PRUNED"] == 20
    assert states(study)["PRUNED"] > 0
    assert result.best > result.start
    assert all(len(one.values) == 3 for one in result.candidates)
    assert ("is better" in output) == (result.winner is not None)
