"""The studies in miniature, through DVC: one row, two models, one seed, a handful of steps."""

import json

import pytest
import yaml

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
    }
    # No stage depends on whether it is recorded.
    reproduced.apply("miniature", {"tracking": {"enabled": False}})
    (reproduced.folder / "studies/params.yaml").write_text(yaml.safe_dump(study))
    for name in ("ablation.json", "ablation.md", "compare.json", "compare.md"):
        (reproduced.folder / "studies/reports" / name).unlink(missing_ok=True)
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
    tables = ["ablation.json", "ablation.md", "compare.json", "compare.md"]
    assert sorted(shown) == [f"studies/reports/{name}" for name in tables]


@pytest.mark.slow
def test_the_report_of_the_main_job_shows_the_tables(studied: Project) -> None:
    studied.run("python", "-m", "mrmodel.stages.report")
    page = studied.read("reports/report.html").decode()
    assert "SG-DETR, part by part" in page
    assert "<td>moment_detr</td>" in page
    assert "All models" in page
    assert "<td>sg_detr − moment_detr</td>" in page
    # The main job must not begin a study of an hour by itself.
    planned = studied.run("dvc", "repro", "--dry")
    assert "ablation" not in planned
    assert "compare" not in planned
