"""What the runs of a confirmation say: by which figure, and what if one of them failed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from mrmodel import presets
from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import TuningError
from mrmodel.evaluate.significance import PerQuery
from mrmodel.stages.trainer import TrainingJob
from mrmodel.storage import open_store
from mrmodel.tune import confirm
from mrmodel.tune.confirm import ConfirmationCandidate, ConfirmationPlan, ConfirmObjective
from mrmodel.tune.result import SearchResult
from mrmodel.tune.search import confirmed_candidates
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Facts, Owner, TrialQueue
from mrmodel.tune.worker import ClaimedTrial

FIRST, SECOND = "MR-full-mAP", "HL-min-VeryGood-Hit1"
QUERIES = 60


def config_of(**tune: Any) -> Config:
    text = presets.overlay(presets.render("miniature"), {"tune": tune})
    return parse_config(yaml.safe_load(text))


def figures(first: float, second: float, seed: int) -> PerQuery:
    draw = np.random.default_rng(seed)
    spread = draw.normal(0.0, 0.5, QUERIES)
    vids = [f"v{number // 3}" for number in range(QUERIES)]
    values = {FIRST: first + spread, SECOND: second - spread}
    return PerQuery(list(range(QUERIES)), vids, values)


def confirmation(
    folder: Path, config: Config, runs: dict[int, tuple[float, float] | str]
) -> tuple[TrialQueue, ConfirmationPlan]:
    """Candidate -> its two figures with every seed, or why its second seed failed."""
    best = [
        ConfirmationCandidate(number, {"train.scratch.lr": number * 1e-4})
        for number in runs
        if number
    ]
    plan = ConfirmationPlan.of(config, {}, best)
    facts = Facts("unused:Unused", config.model_dump(), plan.as_json(), str(folder), "t", 3)
    count = max(1, len(config.tune.figures))
    study = TrialQueue.create(open_storage(str(folder / "journal.log")), "c", facts, count, 0)
    store = open_store(str(folder))
    for claimed in plan.enqueued():
        study.enqueue(claimed, required=True)
        trial = study.claim(Owner("me", "here", "1:1.00"), NopPruner())
        assert trial is not None
        number = trial.suggest_categorical("candidate", range(len(plan.candidates)))
        seed = trial.suggest_categorical("seed", plan.seeds)
        found = runs[number]
        if isinstance(found, str):
            if seed != plan.seeds[0]:
                study.tell(trial.number, TrialState.PRUNED, None, reason=found)
                continue
            found = (0.0, 0.0)
        write_figures(folder, number, seed, figures(*found, seed=seed))
        values = list(found)[:count]
        study.tell(trial.number, TrialState.COMPLETE, values)
    assert store.keys()
    return study, plan


def write_figures(folder: Path, number: int, seed: int, found: PerQuery) -> None:
    values = {name: column.tolist() for name, column in found.values.items()}
    told = {"qids": found.qids, "vids": found.vids, "values": values}
    (folder / f"{number}-{seed}.json").write_text(json.dumps(told))


def verdict_of(candidates: list[Any]) -> SearchResult:
    return SearchResult(
        figure=FIRST, start=1.0, best=2.0, trials=9, seeds=[7, 8],
        candidates=candidates, after_training=None,
    )  # fmt: skip


def test_the_gain_is_of_the_figure_that_is_searched(tmp_path: Path) -> None:
    config = config_of(figures=[SECOND], confirm={"best": 1, "seeds": 2})
    study, plan = confirmation(tmp_path, config, {0: (10.0, 50.0), 1: (20.0, 40.0)})
    (start, one), dropped = confirmed_candidates(study, plan, config)
    assert dropped == []
    assert start.gain is None
    assert one.gain is not None
    assert one.gain.difference == pytest.approx(-10.0)
    assert verdict_of([start, one]).winner is None


def test_a_clear_loss_of_the_second_figure_is_no_win(tmp_path: Path) -> None:
    config = config_of(figures=[FIRST, SECOND], confirm={"best": 2, "seeds": 2})
    runs = {0: (10.0, 50.0), 1: (20.0, 40.0), 2: (15.0, 50.0)}
    study, plan = confirmation(tmp_path, config, runs)
    (start, loses, wins), _ = confirmed_candidates(study, plan, config)
    assert loses.gain is not None
    assert loses.gain.is_clear
    assert not loses.is_better
    assert wins.is_better
    assert verdict_of([start, wins]).winner == wins
    assert verdict_of([start, loses]).changes == {}


def test_a_candidate_that_failed_with_a_seed_is_dropped(tmp_path: Path) -> None:
    config = config_of(confirm={"best": 2, "seeds": 2})
    runs: dict[int, Any] = {0: (10.0, 50.0), 1: "step 7: loss = nan", 2: (15.0, 50.0)}
    study, plan = confirmation(tmp_path, config, runs)
    found, dropped = confirmed_candidates(study, plan, config)
    assert [one.trial for one in found] == [None, 2]
    assert dropped == ["trial 1: seed 8: step 7: loss = nan"]


def test_a_starting_point_that_failed_ends_the_search(tmp_path: Path) -> None:
    config = config_of(confirm={"best": 1, "seeds": 2})
    study, plan = confirmation(tmp_path, config, {0: "step 3: loss = inf", 1: (15.0, 50.0)})
    with pytest.raises(TuningError, match=r"starting point.*seed 8: step 3: loss = inf"):
        confirmed_candidates(study, plan, config)


def test_a_figure_without_values_of_queries_is_named() -> None:
    with pytest.raises(TuningError, match=r"'MR-full-mPA'.*'MR-full-mAP'"):
        confirm.only(figures(1.0, 2.0, 0), ["MR-full-mPA"])


@pytest.mark.parametrize(("run", "size"), [("pretrain", 256), ("finetune", 8)])
def test_a_run_that_does_not_fit_is_told_with_its_own_batch_size(
    run: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(_: Config, job: TrainingJob, *__: Any) -> None:
        if job.run == run:
            torch.empty(10**15)  # What really says that memory does not suffice.

    monkeypatch.setattr(confirm, "train_model", hungry)
    changes = {"tune": {"run": "finetune"}, "train": {"pretrain": {"batch_size": 256}}}
    text = presets.overlay(presets.render("miniature"), changes)
    config = parse_config(yaml.safe_load(text))
    plan = ConfirmationPlan.of(config, {}, [ConfirmationCandidate(1, {"train.clip_norm": 0.5})])
    assert plan.pretrains
    facts = Facts("unused:Unused", config.model_dump(), plan.as_json(), str(tmp_path), "t", 3)
    study = TrialQueue.create(open_storage(str(tmp_path / "journal.log")), "c", facts, 1, 0)
    study.enqueue(plan.enqueued()[0])
    trial = study.claim(Owner("me", "here", "1:1.00"), NopPruner())
    assert trial is not None
    with pytest.raises(TuningError, match=f"a batch of {size} does not fit into memory"):
        ConfirmObjective(facts)(ClaimedTrial(trial, "c", 0, None))
