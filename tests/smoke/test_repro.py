"""The main job in miniature, through DVC itself."""

import json
import re

import pytest
import yaml

from tests.project import Project

STAGES = {
    "corpus",
    "extract@tiny.video",
    "extract_text@tiny.text",
    "profile",
    "intervid_filter",
    "intervid_select",
    "intervid_mr",
    "video_captions",
    "pretrain@moment_detr",
    "finetune@moment_detr",
    "scratch@moment_detr",
    "package@moment_detr",
    "evaluate",
    "report",
}


WAYS = {
    "zero_shot",
    *(f"moment_detr.{kind}" for kind in ("pretrained", "scratch", "finetuned")),
}

# No stage depends on whether it is recorded.
CHANGED_RATE = {"tracking": {"enabled": False}, "train": {"finetune": {"lr": 5e-4}}}
CHANGED = {"finetune@moment_detr", "package@moment_detr", "evaluate", "report"}


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_every_output_is_there(reproduced: Project) -> None:
    lock = yaml.safe_load(reproduced.read("dvc.lock"))
    assert set(lock["stages"]) == STAGES
    metrics = json.loads(reproduced.read("reports/metrics.json"))
    assert set(metrics) == WAYS
    assert all(0 <= row["MR-full-mAP"] <= 100 for row in metrics.values())
    report = reproduced.read("reports/report.html").decode()
    assert report.count('<div class="example">') == 9
    assert report.count("data:image/jpeg;base64,") == 9 * 8
    assert "http://" not in report
    assert "https://" not in report


def test_git_sees_the_lock_file_only(reproduced: Project) -> None:
    assert reproduced.git("status", "--porcelain").split() == ["??", "dvc.lock"]


def test_a_second_run_does_nothing(reproduced: Project) -> None:
    output = reproduced.run("dvc", "repro")
    assert stages_run(output) == set()
    assert "up to date" in output


def test_metrics_plots_and_graph_can_be_shown(reproduced: Project) -> None:
    shown = json.loads(reproduced.run("dvc", "metrics", "show", "--json"))
    files = shown[""]["data"]
    assert set(files) == {f"reports/metrics/{way}.json" for way in WAYS}
    metrics = json.loads(reproduced.read("reports/metrics.json"))
    for way in WAYS:
        columns = files[f"reports/metrics/{way}.json"]["data"]
        assert len(columns) <= 10
        assert columns["mAP"] == metrics[way]["MR-full-mAP"]
    # A row a system, in a terminal of usual width.
    table = reproduced.run("dvc", "metrics", "show").splitlines()
    assert len(table) == 1 + len(WAYS)
    assert max(map(len, table)) <= 140
    assert "finetune@moment_detr" in reproduced.run("dvc", "dag", "--dot")
    reproduced.run("dvc", "plots", "show")
    page = reproduced.read("dvc_plots/index.html").decode()
    assert "reports_recall_csv" in page
    assert reproduced.git("status", "--porcelain").split() == ["??", "dvc.lock"]


def test_runs_are_recorded(reproduced: Project) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{reproduced.folder / '.mrmodel/mlflow.db'}")
    experiment = client.get_experiment_by_name("mrmodel")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"pretrain@moment_detr", "finetune@moment_detr", "evaluate"} <= set(runs)
    run = runs["finetune@moment_detr"]
    assert run.info.status == "FINISHED"
    assert float(run.data.params["run.lr"]) > 0
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert len(curve) > 1
    assert len(run.data.tags["git.revision"]) == 40


def test_a_changed_rate_runs_fine_tuning_alone_at_first(reproduced: Project) -> None:
    """The plan, which does not know that other weights come out; the next test runs it."""
    original = reproduced.read("params.yaml")
    reproduced.apply("miniature", CHANGED_RATE)
    try:
        assert stages_run(reproduced.run("dvc", "repro", "--dry")) == {"finetune@moment_detr"}
    finally:
        (reproduced.folder / "params.yaml").write_bytes(original)


@pytest.mark.slow
def test_metrics_follow_a_changed_rate_and_come_back(reproduced: Project) -> None:
    before = reproduced.read("reports/metrics.json")
    original = reproduced.read("params.yaml")
    reproduced.apply("miniature", CHANGED_RATE)
    assert stages_run(reproduced.run("dvc", "repro")) == CHANGED
    assert reproduced.read("reports/metrics.json") != before
    (reproduced.folder / "params.yaml").write_bytes(original)
    # DVC's run cache brings the others back; it holds no outputs with `persist`.
    assert stages_run(reproduced.run("dvc", "repro")) == {"package@moment_detr"}
    assert reproduced.read("reports/metrics.json") == before


def test_a_mistake_stops_before_any_work(reproduced: Project) -> None:
    original = reproduced.read("params.yaml")
    broken = original.replace(b"    lr:", b"    learning_rate:", 1)
    (reproduced.folder / "params.yaml").write_bytes(broken)
    try:
        output = reproduced.invoke("config", "check", code=2)
        assert "train.pretrain.learning_rate" in output
        output = reproduced.run("python", "-m", "mrmodel.stages.corpus", code=2)
        assert "train.pretrain.learning_rate" in output
    finally:
        (reproduced.folder / "params.yaml").write_bytes(original)
