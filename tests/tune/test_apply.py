"""What a search has confirmed goes into params.yaml, and DVC runs what it touches."""

import json
from pathlib import Path

import pytest
import yaml

from mrmodel.config.schema import load_config
from mrmodel.errors import TuningError
from mrmodel.tune.local import resumed_config
from mrmodel.tune.result import (
    Confirmed,
    Gain,
    PostHocSelection,
    SearchResult,
    apply_changes,
    changes_to_apply,
    save_result,
)
from mrmodel.tune.search import SearchContext, open_search
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import TrialQueue
from mrmodel.tune.worker_pool import LocalWorkerPool
from tests.project import Project

CLEAR = Gain(difference=4.0, low=1.5, high=6.0)
UNCLEAR = Gain(difference=1.0, low=-2.0, high=4.0)


def changed_stages(project: Project) -> set[str]:
    return set(json.loads(project.run("dvc", "status", "dvc.yaml", "--json")))


@pytest.fixture(scope="module")
def finished(reproduced: Project) -> Project:
    """The repository before anything is applied: DVC has nothing to do in it."""
    reproduced.apply("miniature", {"tracking": {"enabled": True}})
    assert changed_stages(reproduced) == set()
    return reproduced


@pytest.fixture
def study(reproduced: Project, monkeypatch: pytest.MonkeyPatch) -> TrialQueue:
    """A search that was begun in a repository whose pipeline has run."""
    monkeypatch.chdir(reproduced.folder)
    reproduced.apply("miniature", {"tracking": {"enabled": True}})
    address = str(reproduced.folder / ".mrmodel/tune/journal.log")
    Path(address).unlink(missing_ok=True)
    storage = open_storage(address)
    context = SearchContext(
        storage, ".mrmodel/tune", LocalWorkerPool(address, Path(), None), lambda _: None
    )
    return open_search(load_config(Path("params.yaml")), context)


def result(
    changes: dict[str, object], gain: Gain, after: PostHocSelection | None = None
) -> SearchResult:
    return SearchResult(
        figure="MR-full-mAP",
        start=10.0,
        best=14.0,
        trials=20,
        seeds=[7, 8],
        candidates=[
            Confirmed(trial=None, changes={}, values=[10.0, 11.0], gain=None),
            Confirmed(trial=5, changes=changes, values=[14.0, 15.0], gain=gain),
        ],
        after_training=after,
    )


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"train.finetune.lr": 5e-5}, {"finetune@moment_detr"}),
        ({"postprocess.nms_iou": 0.7}, {"package@moment_detr"}),
        (
            {"models.moment_detr.loss.giou": 2.5, "train.weight_decay": 1e-3},
            {"pretrain@moment_detr", "finetune@moment_detr", "scratch@moment_detr"},
        ),
    ],
)
def test_dvc_runs_what_the_change_touches(
    finished: Project, study: TrialQueue, changes: dict[str, object], touched: set[str]
) -> None:
    save_result(study, result(changes, CLEAR))
    before = finished.read("params.yaml").decode()
    output = finished.invoke("tune", "apply")
    after = finished.read("params.yaml").decode()
    assert all(f"{path}: {value}" in output for path, value in changes.items())
    assert changed_stages(finished) == touched
    assert after.count("#") == before.count("#")
    # A new setting of a model may need lines of its own; no other line changes.
    lost = set(before.splitlines()) - set(after.splitlines())
    assert len(lost) <= len(changes)
    for path, value in changes.items():
        found = yaml.safe_load(after)
        for part in path.split("."):
            found = found[part]
        assert found == value
    # Once more is no mistake.
    finished.invoke("tune", "apply")
    assert finished.read("params.yaml").decode() == after


def test_what_is_not_clear_is_not_applied(study: TrialQueue) -> None:
    after = PostHocSelection(trial=3, changes={"postprocess.nms_iou": 0.7}, gain=UNCLEAR)
    save_result(study, result({"train.finetune.lr": 5e-5}, UNCLEAR, after))
    before = Path("params.yaml").read_text()
    with pytest.raises(
        TuningError, match=r"no gain is clear \(trial 5 \+1\.00 \[-2\.00, \+4\.00\]"
    ):
        changes_to_apply(study, unconfirmed=False)
    assert changes_to_apply(study, unconfirmed=True) == {"train.finetune.lr": 5e-5}
    assert Path("params.yaml").read_text() == before


def test_what_is_clear_after_training_is_applied_alone(study: TrialQueue) -> None:
    after = PostHocSelection(trial=3, changes={"postprocess.nms_iou": 0.7}, gain=CLEAR)
    save_result(study, result({"train.finetune.lr": 5e-5}, UNCLEAR, after))
    assert changes_to_apply(study, unconfirmed=False) == {"postprocess.nms_iou": 0.7}


def test_a_search_without_end_or_gain_has_nothing_to_apply(study: TrialQueue) -> None:
    with pytest.raises(TuningError, match="has not come to its end"):
        changes_to_apply(study, unconfirmed=True)
    nothing = result({}, CLEAR).model_copy(update={"candidates": []})
    save_result(study, nothing)
    with pytest.raises(TuningError, match="none of 20 trials was above the starting point"):
        changes_to_apply(study, unconfirmed=True)


def test_a_resumed_search_is_as_long_as_it_was_made(study: TrialQueue) -> None:
    assert resumed_config(study.storage, "main", None, None).tune.trials == study.live() == 40
    study.fill(45)
    assert resumed_config(study.storage, "main", None, 3).tune.trials == 45
    assert resumed_config(study.storage, "main", 50, 3).tune.workers == 3
    context = SearchContext(
        study.storage, ".mrmodel/tune", LocalWorkerPool("", Path(), None), lambda _: None
    )
    with pytest.raises(TuningError, match=r"has 45 trials already; tune\.trials = 40 would be"):
        open_search(resumed_config(study.storage, "main", 40, None), context)


def test_a_search_of_other_data_needs_another_name(study: TrialQueue) -> None:
    context = SearchContext(
        study.storage, ".mrmodel/tune", LocalWorkerPool("", Path(), None), lambda _: None
    )
    config = resumed_config(study.storage, "main", None, None)
    assert open_search(config, context).live() == 40
    lock, val = Path("dvc.lock"), Path("data/miniature/val.jsonl")
    text, rows = lock.read_text(), val.read_text()
    try:
        val.write_text(rows + rows.splitlines()[0] + "\n")
        with pytest.raises(TuningError, match=r"about\.inputs\.data/miniature/val\.jsonl"):
            open_search(config, context)
        val.write_text(rows)
        made = yaml.safe_load(text)["stages"]["pretrain@moment_detr"]["outs"][0]
        lock.write_text(text.replace(made["md5"], "0" * 32 + ".dir"))
        with pytest.raises(TuningError, match=r"about\.inputs\.models/pretrained/moment_detr"):
            open_search(config, context)
    finally:
        lock.write_text(text)
        val.write_text(rows)


def test_a_file_that_has_changed_since_is_not_overwritten(study: TrialQueue) -> None:
    file = Path("params.yaml")
    text = file.read_text()
    edited = text.replace("lr: 1.0e-3", "lr: 3.0e-3")
    assert edited != text
    file.write_text(edited)
    with pytest.raises(TuningError, match=r"train\.finetune\.lr = 0\.003.*began with 0\.001"):
        apply_changes(file, study, {"train.finetune.lr": 5e-5})
    assert file.read_text() == edited
