"""What a plain `dvc repro` leaves in MLflow, against what DVC and the files say."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mrmodel.features.store import FeatureStore
from mrmodel.files import digest_of
from tests.project import Project

FINETUNE = "finetune@moment_detr"
ReadArtifact = Callable[[str, str], str]


@pytest.fixture(scope="module")
def client(reproduced: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{reproduced.folder / '.mrmodel/mlflow.db'}")


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, Run]:
    """The first run of each stage; other tests of the project may have added more."""
    experiment = client.get_experiment_by_name("mrmodel")
    order = ["attributes.start_time DESC"]
    found = client.search_runs([experiment.experiment_id], order_by=order)
    return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def lock(client: MlflowClient, runs: dict[str, Run], reproduced: Project) -> dict[str, Any]:
    """dvc.lock of the undisturbed project."""
    content: dict[str, Any] = yaml.safe_load(reproduced.read("dvc.lock"))["stages"]
    return content


@pytest.fixture(scope="module")
def artifact(client: MlflowClient, runs: dict[str, Run]) -> ReadArtifact:
    """Text of an artifact of a stage."""

    def read(stage: str, name: str) -> str:
        return Path(client.download_artifacts(runs[stage].info.run_id, name)).read_text()

    return read


def test_every_stage_is_a_finished_run(runs: dict[str, Run], lock: dict[str, Any]) -> None:
    assert set(lock) <= set(runs)
    assert {runs[stage].info.status for stage in lock} == {"FINISHED"}
    for stage in lock:
        assert runs[stage].data.tags["mlflow.source.name"] == lock[stage]["cmd"]
        assert runs[stage].data.metrics["seconds"] > 0


def test_inputs_have_the_hashes_of_the_lock_file(
    runs: dict[str, Run], lock: dict[str, Any]
) -> None:
    for stage, entry in lock.items():
        inputs = [one.dataset for one in runs[stage].inputs.dataset_inputs]
        recorded = {one.name: one.digest for one in inputs}
        data = {
            dep["path"]: dep["md5"]
            for dep in entry["deps"]
            if not dep["path"].startswith("mrmodel")
        }
        assert recorded == data, stage
    assert len(runs["evaluate"].inputs.dataset_inputs) == 7


def test_parameters_are_those_of_the_lock_file_with_their_types(
    runs: dict[str, Run], lock: dict[str, Any], artifact: ReadArtifact
) -> None:
    for stage, entry in lock.items():
        typed = json.loads(artifact(stage, "params.json"))
        for name, value in entry.get("params", {}).get("params.yaml", {}).items():
            tree = typed
            for part in name.split("."):
                tree = tree[part]
            assert tree == value, (stage, name)
    params = runs[FINETUNE].data.params
    assert params["train.weight_decay"] == "0.0001"
    assert params["features.video_streams"] == "['tiny.video']"
    assert params["train.finetune.steps"] == params["run.steps"] == "12"
    assert params["model.hidden"] == "32"
    assert params["model.loss.giou"] == "1.0", "what params.yaml leaves to the model is there too"


def test_every_column_of_the_history_is_a_curve(
    client: MlflowClient, runs: dict[str, Run], reproduced: Project
) -> None:
    for stage in ("pretrain", "finetune", "scratch"):
        run = runs[f"{stage}@moment_detr"]
        text = reproduced.read(f"reports/training/{stage}-moment_detr.csv").decode()
        rows = list(csv.DictReader(text.splitlines()))
        for name in [column for column in rows[0] if column != "step"]:
            expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            history = client.get_metric_history(run.info.run_id, name.replace("@", "_at_"))
            assert [(one.step, one.value) for one in history] == expected, name
    assert {"train/loss", "train/span", "train/giou", "val/MR-full-mAP", "lr"} <= set(
        runs[FINETUNE].data.metrics
    )


def test_curves_figures_and_plots_are_files(
    runs: dict[str, Run], artifact: ReadArtifact, reproduced: Project
) -> None:
    for name in ("curves/loss.svg", "curves/losses.svg", "curves/validation.svg"):
        assert "<polyline" in artifact(FINETUNE, name)
    for name in ("plots/recall.svg", "plots/headline.svg"):
        assert "moment_detr.finetuned" in artifact("evaluate", name)
    for stage, name in (
        (FINETUNE, "reports/training/finetune-moment_detr.json"),
        (FINETUNE, "models/finetuned/moment_detr/config.json"),
        ("evaluate", "reports/metrics.json"),
        ("evaluate", "reports/evaluation/comparison.json"),
        ("report", "reports/report.html"),
        ("corpus", "data/miniature/corpus.json"),
        ("intervid_mr", "data/intervid_mr/report.json"),
        ("extract@tiny.video", "features/miniature/tiny.video/manifest.json"),
    ):
        assert artifact(stage, name) == reproduced.read(name).decode(), name


def test_the_evaluation_is_there_as_metrics_and_tables(
    runs: dict[str, Run], artifact: ReadArtifact, reproduced: Project
) -> None:
    metrics = json.loads(reproduced.read("reports/metrics.json"))
    for way, figures in metrics.items():
        for name, value in figures.items():
            recorded = runs["evaluate"].data.metrics[f"{way}/{name.replace('@', '_at_')}"]
            assert recorded == value
    table = json.loads(artifact("evaluate", "tables/figures.json"))
    shown = {row[0]: dict(zip(table["columns"][1:], row[1:], strict=True)) for row in table["data"]}
    assert shown == metrics
    recall = json.loads(artifact("evaluate", "tables/recall.json"))
    kept = list(csv.reader(reproduced.read("reports/recall.csv").decode().splitlines()))
    assert [recall["columns"], *recall["data"]] == [
        kept[0],
        *[[way, float(iou), float(value)] for way, iou, value in kept[1:]],
    ]
    differences = json.loads(artifact("evaluate", "tables/differences.json"))
    assert differences["data"][0][0] == "moment_detr.finetuned - zero_shot"


def test_runs_name_code_features_and_environment(
    runs: dict[str, Run], lock: dict[str, Any], artifact: ReadArtifact, reproduced: Project
) -> None:
    revision = reproduced.git("rev-list", "--max-parents=0", "HEAD").strip()
    store = FeatureStore(reproduced.folder / "features/miniature/tiny.video")
    fingerprint = store.info.fingerprint
    for stage in lock:
        tags = runs[stage].data.tags
        assert (tags["git.revision"], tags["git.dirty"]) == (revision, "false")
        assert tags["env.torch"].startswith("2.")
    for stage in ("extract@tiny.video", "pretrain@moment_detr", FINETUNE, "evaluate"):
        assert runs[stage].data.tags["features.tiny.video"] == digest_of(fingerprint)
        assert json.loads(artifact(stage, "features.json"))["tiny.video"] == fingerprint
    assert "features.tiny.video" not in runs["corpus"].data.tags
    assert "dvc.lock.sha256" not in runs["corpus"].data.tags, "there was none yet"
    locks = {runs[stage].data.tags["dvc.lock.sha256"] for stage in ("evaluate", "report")}
    assert len(locks) == 2, "each stage changes it"
    assert runs[FINETUNE].data.tags["device"] == "cpu"


def test_every_run_has_the_load_of_its_machine(runs: dict[str, Run], lock: dict[str, Any]) -> None:
    for stage in lock:
        metrics = runs[stage].data.metrics
        assert metrics["system/stage_memory_megabytes"] > 50
        assert metrics["system/system_memory_usage_megabytes"] > 100
        assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100


def test_stages_say_how_much_they_did(runs: dict[str, Run]) -> None:
    assert runs["extract@tiny.video"].data.metrics["n_items"] == 22
    assert runs["extract@tiny.video"].data.metrics["n_failed"] == 0
    kept = runs["intervid_filter"].data.metrics["kept/captions"]
    assert runs["intervid_select"].data.metrics["selected/captions"] == kept > 0
    assert runs["intervid_mr"].data.metrics["samples/train"] > 0


def test_a_stage_run_by_hand_is_the_stage_of_its_command(
    reproduced: Project, client: MlflowClient, tmp_path: Path
) -> None:
    project = reproduced.copy(tmp_path / "clone")
    experiment = client.get_experiment_by_name("mrmodel")
    project.run("python", "-m", "mrmodel.stages.extract", "--stream", "tiny.text")
    copied = MlflowClient(f"sqlite:///{project.folder / '.mrmodel/mlflow.db'}")
    (run, *_) = copied.search_runs([experiment.experiment_id])
    assert run.info.run_name == "extract_text@tiny.text"
    assert run.data.params["features.max_failed_share"]
    read = {one.dataset.name for one in run.inputs.dataset_inputs}
    splits = ("train", "val", "test", "pretrain", "pretrain_val")
    rows = {f"data/miniature/{name}.jsonl" for name in splits}
    made = {"data/intervid_select/selected.parquet", "data/video_captions"}
    assert read == {*rows, *made, "encoder_weights.lock", "own_features/none"}
