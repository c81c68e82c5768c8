"""The studies in miniature, through DVC: one row, two models, one seed, a handful of steps."""

import json
from pathlib import Path

import pytest
import yaml

from mrmodel.config.schema import load_config
from mrmodel.experiments.pretraining import pretraining, pretraining_run
from mrmodel.progress import NullReporter
from mrmodel.train.checkpoint import WEIGHTS
from tests.project import Project
from tests.smoke.test_repro import stages_run

ROWS, STEPS = ["sg_detr_ablation_a"], 6
MODELS = ["moment_detr", "sg_detr"]


@pytest.fixture(scope="module")
def studied(reproduced: Project) -> Project:
    """The finished main job, and small studies."""
    study = {
        "seeds": [1],
        "ablation": {"rows": ROWS, "run": {"steps": STEPS}},
        "compare": {"models": MODELS, "run": {"steps": STEPS}},
        "pretraining": {
            "rows": ["moment_detr.none"],
            "run": {"pretrain_steps": 2, "finetune_steps": 4},
        },
    }
    # No stage depends on whether it is recorded.
    reproduced.apply("miniature", {"tracking": {"enabled": False}})
    (reproduced.folder / "studies/params.yaml").write_text(yaml.safe_dump(study))
    for study in ("ablation", "compare", "pretraining"):
        for kind in ("json", "md"):
            path = reproduced.folder / f"studies/reports/{study}.{kind}"
            path.unlink(missing_ok=True)
    return reproduced


def test_the_ablation_table(studied: Project) -> None:
    output = studied.run("dvc", "repro", "studies/dvc.yaml:ablation")
    runs = {f"studies/dvc.yaml:ablation_run@{row}-1" for row in ROWS}
    assert stages_run(output) == {*runs, "studies/dvc.yaml:ablation"}
    table = json.loads(studied.read("studies/reports/ablation.json"))
    assert (table["corpus"], table["steps"]) == ("miniature", STEPS)
    assert set(table["rows"]) == set(ROWS)
    for row in table["rows"].values():
        assert row["seeds"] == 1
        assert 0 <= row["figures"]["MR-full-mAP"]["mean"] <= 100
        assert row["figures"]["MR-full-mAP"]["sd"] == 0.0
        assert row["parameters"] > 1000
    switches = table["rows"]["sg_detr_ablation_a"]["switches"]
    assert (switches["saliency_guided"], switches["query_selection"]) == (False, False)
    assert "| a | robust | off |" in studied.read("studies/reports/ablation.md").decode()


def test_what_pre_training_is_worth(studied: Project) -> None:
    """In this process: a row of each kind of set, with equal steps in all of them."""
    rows = ["none", "intervid_mr.5", "intervid_mr.9", "intervid_mr", "video_captions"]
    runs = {}
    with studied.inside():
        config = load_config(Path("params.yaml"))
        for row in rows:
            options = {"seed": "1", "pretrain_steps": "2", "finetune_steps": "4"}
            pretraining_run(config, NullReporter(), {"row": f"moment_detr.{row}", **options})
            result = studied.read(f"studies/reports/pretraining/moment_detr.{row}-1.json")
            runs[row] = json.loads(result)
        pretraining(config, NullReporter(), {})
    every = studied.read("data/intervid_mr/train.jsonl").splitlines()
    state = ".mrmodel/studies/pretraining/moment_detr"
    captioned = studied.read(f"{state}.video_captions-1/video_captions/train.jsonl").splitlines()
    counts = {row: run["samples"] for row, run in runs.items()}
    expected = {"none": 0, "intervid_mr.5": 5, "intervid_mr.9": 9, "intervid_mr": len(every)}
    assert counts == expected | {"video_captions": len(captioned)}
    assert len(captioned) > 0
    for size in (5, 9):
        file = f"{state}.intervid_mr.{size}-1/train.jsonl"
        assert studied.read(file).splitlines() == every[:size]
    for row, run in runs.items():
        assert (run["steps"], run["pretrain_steps"]) == (6, 0 if row == "none" else 2)
        assert (run["pretrained"] is None) == (row == "none")
    weights = {
        studied.read(f"{state}.{row}-1/pretrained/{WEIGHTS}") for row in rows if row != "none"
    }
    assert len(weights) == len(rows) - 1  # each of other rows
    table = json.loads(studied.read("studies/reports/pretraining.json"))
    assert (table["corpus"], table["steps"], table["pretrain_steps"]) == ("miniature", 6, 2)
    assert set(table["differences"]) == {f"moment_detr.{row}" for row in rows if row != "none"}
    page = studied.read("studies/reports/pretraining.md").decode()
    assert "| moment_detr.intervid_mr.5 | 5 |" in page


@pytest.mark.slow
def test_the_table_of_all_models(studied: Project) -> None:
    output = studied.run("dvc", "repro", "studies/dvc.yaml:compare")
    runs = {f"studies/dvc.yaml:compare_run@{model}-1" for model in MODELS}
    assert stages_run(output) == {*runs, "studies/dvc.yaml:compare"}
    table = json.loads(studied.read("studies/reports/compare.json"))
    assert (table["corpus"], table["steps"], table["threads"]) == ("miniature", STEPS, 1)
    assert (table["default"], set(table["rows"])) == ("moment_detr", set(MODELS))
    for model, row in table["rows"].items():
        result = json.loads(studied.read(f"studies/reports/compare/{model}-1.json"))
        values = result["queries"]["values"]
        mean = row["figures"]["MR-full-mAP"]["mean"]
        assert mean == pytest.approx(sum(values) / len(values), abs=0.005)
        assert row["costs"]["training_seconds"] == {"mean": result["training_seconds"], "sd": 0.0}
        assert 0 < result["training_seconds"] < 60
        assert result["queries_per_second"] > 1
        assert row["parameters"] > 1000
    gain = table["differences"]["sg_detr"]
    assert gain["low"] <= gain["difference"] <= gain["high"]
    assert "| sg_detr − moment_detr |" in studied.read("studies/reports/compare.md").decode()


@pytest.mark.slow
def test_git_sees_the_tables_and_not_the_runs(studied: Project) -> None:
    shown = studied.git("status", "--porcelain", "-uall", "studies/reports").split()[1::2]
    studies = ("ablation", "compare", "pretraining")
    tables = [f"studies/reports/{study}.{kind}" for study in studies for kind in ("json", "md")]
    assert sorted(shown) == tables


@pytest.mark.slow
def test_the_report_of_the_main_job_shows_the_tables(studied: Project) -> None:
    studied.run("python", "-m", "mrmodel.stages.report")
    page = studied.read("reports/report.html").decode()
    assert "SG-DETR, part by part" in page
    assert "<td>moment_detr</td>" in page
    assert "All models" in page
    assert "<td>sg_detr − moment_detr</td>" in page
    assert "Pre-training at equal steps" in page
    assert "<td>moment_detr.video_captions − moment_detr.none</td>" in page
    assert "MR-full-mAP of moment_detr over samples" in page
    # The main job must not begin a study of an hour by itself.
    planned = studied.run("dvc", "repro", "--dry")
    assert "ablation" not in planned
    assert "compare" not in planned
    assert "pretraining_run" not in planned
