"""The ablation study in miniature, through DVC: two rows, one seed, a handful of steps."""

import json
import shutil

import pytest
import yaml

from tests.project import Project
from tests.smoke.test_repro import stages_run

ROWS, STEPS = ["sg_detr_ablation_a", "moment_detr"], 6


@pytest.fixture(scope="module")
def studied(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the finished main job; its own files must stay as other tests expect them."""
    project = Project(tmp_path_factory.mktemp("studies") / "clone")
    shutil.copytree(reproduced.folder, project.folder, dirs_exist_ok=True)
    study = {"seeds": [1], "ablation": {"rows": ROWS, "steps": STEPS}}
    (project.folder / "studies/params.yaml").write_text(yaml.safe_dump(study))
    for name in ("ablation.json", "ablation.md"):
        (project.folder / "studies/reports" / name).unlink(missing_ok=True)
    return project


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
    assert (switches["sgca.gate"], switches["detector"]) == ("none", "dab")
    assert "| a | robust | none |" in studied.read("studies/reports/ablation.md").decode()


def test_git_sees_the_table_and_not_the_runs(studied: Project) -> None:
    shown = studied.git("status", "--porcelain", "-uall", "studies/reports").split()[1::2]
    assert sorted(shown) == ["studies/reports/ablation.json", "studies/reports/ablation.md"]


def test_the_report_of_the_main_job_shows_the_table(studied: Project) -> None:
    studied.run("python", "-m", "mrmodel.pipeline.report")
    page = studied.read("reports/report.html").decode()
    assert "SG-DETR, part by part" in page
    assert "<td>moment_detr</td>" in page
    # The main job must not begin a study of an hour by itself.
    assert "ablation" not in studied.run("dvc", "repro", "--dry")
