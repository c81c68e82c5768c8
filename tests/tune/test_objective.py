"""A trial trains: given up, out of memory, diverged, too slow, or with the figures that it has."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, ThresholdPruner
from optuna.trial import FrozenTrial, TrialState

from mrmodel import presets
from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import DataError, TuningError
from mrmodel.progress import NullReporter
from mrmodel.stages.trainer import train_model
from mrmodel.tune import objective as objective_module
from mrmodel.tune.confirm import touches_pretraining
from mrmodel.tune.objective import StalledPruner, TrainingObjective, job_of
from mrmodel.tune.search import SearchContext, candidates, epochs_of, open_search, start_of
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Owner, TrialQueue, origin_of
from mrmodel.tune.worker import run_trial
from mrmodel.tune.worker_pool import LocalWorkerPool
from tests.project import Project

ME = Owner("me", "here", "1:1.00")
TUNE: dict[str, Any] = {"run": "scratch", "trials": 1}


@pytest.fixture(autouse=True)
def here(reproduced: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reproduced.folder)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def config_of(train: dict[str, Any] | None = None, **tune: Any) -> Config:
    changes = {"tune": {**TUNE, **tune}, "train": train or {}}
    return parse_config(yaml.safe_load(presets.overlay(presets.render("miniature"), changes)))


def short(train: dict[str, Any] | None = None) -> dict[str, Any]:
    """These settings of trainings of one epoch; to most tests their length does not matter."""
    steps = {"pretrain": 3, "finetune": 3, "scratch": 6}
    given = train or {}
    return {**given, **{run: {"steps": n, **given.get(run, {})} for run, n in steps.items()}}


def study_in(folder: Path, config: Config) -> TrialQueue:
    address = str(folder / "journal.log")
    worker_pool = LocalWorkerPool(address, folder, None)
    return open_search(
        config, SearchContext(open_storage(address), str(folder), worker_pool, lambda _: None)
    )


def run_one(study: TrialQueue, pruner: BasePruner | None = None) -> FrozenTrial:
    objective = TrainingObjective(study.facts)
    trial = study.claim(ME, pruner or NopPruner())
    assert trial is not None
    run_trial(study, objective, trial)
    return study.trials()[trial.number]


def test_a_trial_has_the_figures_of_its_validation(tmp_path: Path) -> None:
    trial = run_one(study_in(tmp_path, config_of()))
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["source"] == "params.yaml"
    assert trial.user_attrs["changes"] == {}
    figures = trial.user_attrs["figures"]
    assert trial.values == [figures["MR-full-mAP"]]
    # 48 rows in batches of 8: six steps an epoch, validated at each.
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]
    assert not list(Path(".mrmodel/tune").glob("*/[0-9]*"))


def test_a_trial_that_falls_behind_is_given_up_but_the_starting_point(tmp_path: Path) -> None:
    study, hopeless = study_in(tmp_path, config_of(trials=3)), ThresholdPruner(lower=101.0)
    assert run_one(study, hopeless).state == TrialState.COMPLETE
    trial = run_one(study, hopeless)
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["reason"].startswith("pruned at epoch 1 with MR-full-mAP ")
    assert not list(Path(".mrmodel/resume").glob("main-*"))


def test_values_that_diverge_are_no_end_of_the_search(tmp_path: Path) -> None:
    wide = {"train.run.lr": {"high": 1e30}}
    study = study_in(tmp_path, config_of(short(), trials=3, space=wide))
    study.enqueue({"train.run.lr": 1e30})
    for _ in range(3):
        run_one(study)
    trial = run_one(study)
    assert trial.params["train.run.lr"] == 1e30
    assert trial.state == TrialState.PRUNED
    assert "loss = " in trial.user_attrs["reason"]


@pytest.mark.parametrize(
    ("train", "path"),
    [({}, "train.batch_size"), ({"scratch": {"batch_size": 8}}, "train.scratch.batch_size")],
)
def test_out_of_memory_halves_the_batch_and_says_so(
    train: dict[str, Any], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def hungry(config: Config, *arguments: Any) -> Any:
        tried.append(config.train.for_run("scratch").batch_size)
        if tried[-1] > 2:
            torch.empty(10**15)  # What really says that memory does not suffice.
        return train_model(config, *arguments)

    monkeypatch.setattr(objective_module, "train_model", hungry)
    study = study_in(tmp_path, config_of(short(train)))
    # The starting point and the published values, each three times.
    ends = [run_one(study) for _ in range(6)]
    assert tried == [8, 8, 4, 4, 2, 2]
    assert not study.trials(TrialState.WAITING)
    first, second, third = (one for one in ends if origin_of(one) == 0)
    assert [one.state for one in (first, second)] == [TrialState.FAIL] * 2
    assert first.user_attrs["reason"] == "out of memory; again with a batch of 4"
    assert first.params == second.params == third.params
    assert third.state == TrialState.COMPLETE
    assert third.user_attrs["changes"] == {path: 2}
    assert third.user_attrs["source"] == "params.yaml"
    # The confirmation of the starting point must fit into memory too.
    assert start_of(study) == third

    def always(config: Config, *_: Any) -> Any:
        torch.empty(10**15)

    monkeypatch.setattr(objective_module, "train_model", always)
    study.fill(3)
    ends = [run_one(study) for _ in range(4)]
    assert [one.state for one in ends] == [*[TrialState.FAIL] * 3, TrialState.PRUNED]
    assert "not even a batch of one" in ends[-1].user_attrs["reason"]
    assert study.live() == 3


def test_a_slow_model_is_not_feasible(tmp_path: Path) -> None:
    study = study_in(tmp_path, config_of(short(), max_latency_s=1e-9))
    trial = run_one(study)
    assert trial.user_attrs["latency_s"] > 1e-9
    assert study.best_value() is None
    assert candidates(study, 3) == []
    study = study_in(tmp_path / "fast", config_of(short(), max_latency_s=10.0))
    run_one(study)
    assert study.best_value() is not None


def test_two_figures_make_a_front(tmp_path: Path) -> None:
    figures = ["MR-full-mAP", "HL-min-VeryGood-Hit1"]
    study = study_in(tmp_path, config_of(short(), figures=figures, trials=3))
    trials = [run_one(study) for _ in range(3)]
    assert isinstance(TrainingObjective(study.facts).pruner, NopPruner)
    assert all(len(trial.values) == 2 for trial in trials)
    front = {trial.number for trial in study.handle.best_trials}
    assert {one.trial for one in candidates(study, 3)} <= front


def test_a_figure_that_does_not_exist_ends_the_search(tmp_path: Path) -> None:
    study = study_in(tmp_path, config_of(short(), figures=["MR-full-mPA"]))
    with pytest.raises(TuningError, match=r"tune\.figures: 'MR-full-mPA'.*'MR-full-mAP'"):
        run_one(study)


def test_the_pruner_follows_the_settings(tmp_path: Path) -> None:
    study = study_in(tmp_path, config_of())
    pruner = TrainingObjective(study.facts).pruner
    assert isinstance(pruner, StalledPruner)
    assert isinstance(pruner.inner, HyperbandPruner)
    off = config_of(prune={"enabled": False}, study="off")
    assert isinstance(TrainingObjective(study_in(tmp_path, off).facts).pruner, NopPruner)


def test_the_length_of_a_training_is_known_beforehand(tmp_path: Path) -> None:
    assert epochs_of(config_of()) == 4  # 24 steps of 48 rows in batches of 8.
    assert epochs_of(config_of({"scratch": {"batch_size": 16}})) == 8
    train = Path("data/miniature/train.jsonl")
    text = train.read_text()
    train.unlink()
    train.write_text("")
    try:
        with pytest.raises(DataError, match=r"train\.jsonl.*has no rows"):
            epochs_of(config_of())
    finally:
        train.write_text(text)


def test_confirmation_pre_trains_where_the_change_reaches_pre_training() -> None:
    config = config_of(run="finetune")
    assert not touches_pretraining(config, {"train.finetune.lr": 1.0, "postprocess.nms_iou": 0.7})
    assert touches_pretraining(config, {"train.weight_decay": 1.0})
    own = config_of({"pretrain": {"weight_decay": 0.1}}, run="finetune")
    assert not touches_pretraining(own, {"train.weight_decay": 1.0})
    assert touches_pretraining(own, {"train.batch_size": 4})
    assert touches_pretraining(config, {"models.moment_detr.loss.giou": 1.0})
    assert not touches_pretraining(config_of(), {"models.moment_detr.loss.giou": 1.0})


def test_a_run_is_trained_with_what_it_has_of_its_own(tmp_path: Path) -> None:
    """As if its batch size and weight decay were those of all runs; the others do not matter."""

    def weights(name: str, train: dict[str, Any]) -> bytes:
        config = config_of(short(train))
        job = job_of(config, tmp_path / name, name, 7)
        train_model(config, job, NullReporter())
        return (job.out / "model.safetensors").read_bytes()

    own = {"batch_size": 16, "weight_decay": 0.5}
    expected = weights("all", own)
    assert weights("own", {"scratch": own, "pretrain": {"batch_size": 3}}) == expected
    assert weights("batch", {"scratch": {"batch_size": 16}}) != expected
    assert weights("decay", {"scratch": {"weight_decay": 0.5}}) != expected
