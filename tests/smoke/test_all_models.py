"""The main job with every registered model in `train.models`, a step a training."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest

from mrmodel.components import MODELS
from mrmodel.config.schema import Config, load_config
from mrmodel.evaluate.rows import read_rows
from mrmodel.progress import NullReporter
from mrmodel.stages.evaluate import evaluate
from mrmodel.stages.package import package
from mrmodel.stages.report import ALONE, WAYS, report
from mrmodel.stages.train import finetune, pretrain, scratch
from tests.project import Project

NAMES = ["sg_detr", *(name for name in sorted(MODELS) if name != "sg_detr")]
FEW = {
    "models": NAMES,
    "pretrain": {"steps": 1},
    "finetune": {"steps": 1},
    "scratch": {"steps": 2},
}


@pytest.fixture(scope="module")
def finished(
    reproduced: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Project, Config]]:
    """A copy of the main job whose models are all trained, and the report on them."""
    project = Project(tmp_path_factory.mktemp("all_models") / "clone")
    for folder in ("data", "features", "studies"):
        shutil.copytree(reproduced.folder / folder, project.folder / folder, dirs_exist_ok=True)
    project.apply("miniature", {"train": FEW})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        config, reporter = load_config(project.folder / "params.yaml"), NullReporter()
        for model in NAMES:
            for stage in (pretrain, finetune, scratch, package):
                stage(config, reporter, {"model": model})
        evaluate(config, reporter)
        report(config, reporter)
        yield project, config


def test_every_way_is_scored(finished: tuple[Project, Config]) -> None:
    project, _ = finished
    metrics = json.loads(project.read("reports/metrics.json"))
    kinds = ("pretrained", "scratch", "finetuned")
    served = {"zero_shot", *(f"{name}.{kind}" for name in NAMES for kind in kinds)}
    alone = {f"sg_detr.{kind}.{system}" for kind in kinds for system in ALONE}
    assert set(metrics) == served | alone
    # The systems alone are neither compared nor shown by `dvc metrics show`.
    assert {path.stem for path in project.folder.glob("reports/metrics/*.json")} == served
    comparison = json.loads(project.read("reports/evaluation/comparison.json"))
    assert set(comparison["intervals"]) == served
    assert len(comparison["differences"]) == 3 * len(NAMES) + len(NAMES) - 1


def test_systems_alone_answer_otherwise_with_the_same_clip_scores(
    finished: tuple[Project, Config],
) -> None:
    project, _ = finished
    folder = project.folder / "reports/evaluation"
    names = ["sg_detr.finetuned", *(f"sg_detr.finetuned.{system}" for system in ALONE)]
    served, *others = (read_rows(folder / f"{name}.jsonl") for name in names)
    for answers in others:
        for answer, row in zip(answers, served, strict=True):
            assert answer["pred_saliency_scores"] == row["pred_saliency_scores"]
        windows = [[row["pred_relevant_windows"] for row in rows] for rows in (answers, served)]
        assert windows[0] != windows[1]


def test_the_report_has_a_row_and_a_curve_for_each(finished: tuple[Project, Config]) -> None:
    project, _ = finished
    page = project.read("reports/report.html").decode()
    for name in NAMES:
        # In the tables of windows and of clip scores; the systems alone have windows only.
        assert page.count(f"<td>{name}, {WAYS['finetuned']}</td>") == 2
        assert f">scratch {name}</text>" in page
    for words in ALONE.values():
        assert page.count(f"<td>sg_detr, {WAYS['finetuned']}: {words}</td>") == 1
    # A loss and a validation chart for each of the three trainings.
    assert len(re.findall(r'aria-label="(?:training loss|validation mAP) over step"', page)) == 6
    tuned = WAYS["finetuned"]
    assert f"<td>sg_detr, {tuned} − qd_detr, {tuned}</td>" in page
