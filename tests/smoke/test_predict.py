"""Serving what the pipeline trained."""

import json
import shutil
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mrmodel.cli.predict import command
from mrmodel.config.schema import load_config
from mrmodel.data.annotations import read_annotations
from mrmodel.data.loader import BatchBuilder, RowLimits
from mrmodel.features.store import FeatureStore
from mrmodel.predict.predictor import Predictor
from mrmodel.storage import ENDPOINT_VARIABLE
from tests.project import Project
from tests.services import S3Service
from tests.video.fixtures import write_video

MODEL = "models/served/moment_detr"


@pytest.fixture(scope="module")
def predictor(reproduced: Project) -> Predictor:
    return Predictor.load(reproduced.folder / MODEL, device="cpu")


def test_the_serving_tensor_is_the_training_tensor(
    reproduced: Project, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same video and query, once from the feature store and once from the file."""
    features = reproduced.folder / "features/miniature"
    stores = BatchBuilder(
        [FeatureStore(features / "tiny.video")],
        [FeatureStore(features / "tiny.text")],
        RowLimits(75, 32),
    )
    served = []
    model = predictor.grounding.model
    monkeypatch.setattr(model, "forward", record(served, model.forward), raising=True)
    for row in read_annotations(reproduced.folder / "data/miniature/train.jsonl")[:3]:
        trained = stores.batch([row])
        video = predictor.encode(reproduced.folder / f"data/miniature/videos/{row.vid}.mp4")
        predictor.search(video, [row.query])
        assert torch.equal(served[-1].video, trained.video)
        assert torch.equal(served[-1].text, trained.text)
        assert torch.equal(served[-1].video_mask, trained.video_mask)


def test_what_is_served_is_what_was_reported(reproduced: Project, predictor: Predictor) -> None:
    reported = reproduced.folder / "reports/evaluation/moment_detr.finetuned.jsonl"
    rows = {row["qid"]: row for row in map(json.loads, reported.read_text().splitlines())}
    truth = read_annotations(reproduced.folder / "data/miniature/test.jsonl")
    assert len(truth) == len(rows)
    for vid in {row.vid for row in truth}:
        video = predictor.encode(reproduced.folder / f"data/miniature/videos/{vid}.mp4")
        asked = [row for row in truth if row.vid == vid]
        answers = predictor.search(video, [row.query for row in asked])
        for row, answer in zip(asked, answers, strict=True):
            expected = rows[row.qid]
            found = answer.as_row()
            # Batches differ, so sums are taken in another order.
            for name in ("pred_relevant_windows", "pred_saliency_scores"):
                assert np.allclose(found[name], expected[name], atol=1e-4), (row.qid, name)


def test_the_packaged_weights_are_the_trained_ones(reproduced: Project) -> None:
    for name in ("model.safetensors", "config.json"):
        trained = f"models/finetuned/moment_detr/{name}"
        assert reproduced.read(f"{MODEL}/{name}") == reproduced.read(trained)
    serving = json.loads(reproduced.read(f"{MODEL}/serving.json"))
    config = load_config(reproduced.folder / "params.yaml")
    postprocess = config.postprocess.model_dump()
    assert serving == {"format": 1, "postprocess": postprocess, "rendered": True}


def record(kept: list, forward):
    def recording(batch):
        kept.append(batch)
        return forward(batch)

    return recording


def test_the_command_prints_windows_and_clip_scores(reproduced: Project, test_video: Path) -> None:
    query = "A thing moves to the left"
    output = reproduced.run("mrmodel", "predict", str(test_video), "--query", query, "--json")
    row = json.loads(output)
    assert row["query"] == query
    assert row["vid"] == test_video.stem
    assert len(row["pred_saliency_scores"]) == 12
    for start, end, score in row["pred_relevant_windows"]:
        assert 0 <= start <= end <= row["duration"]
        assert 0 <= score <= 1
    scores = [window[2] for window in row["pred_relevant_windows"]]
    assert scores == sorted(scores, reverse=True)


def test_a_video_in_s3_is_searched_through_its_pointer(
    reproduced: Project,
    test_video: Path,
    s3_env: S3Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=s3_env.url)
    client.upload_file(str(test_video), "mrmodel", f"predict/{test_video.name}")
    monkeypatch.setattr(reproduced, "variables", {ENDPOINT_VARIABLE: s3_env.url})
    reproduced.invoke("data", "link", "s3://mrmodel/predict", str(tmp_path))
    arguments = ["predict", "--query", "A cat", "--json", "--model", MODEL]
    found = reproduced.invoke(*arguments, str(tmp_path / f"{test_video.stem}.s3"))
    assert json.loads(found) == json.loads(reproduced.invoke(*arguments, str(test_video)))


def test_another_video_is_answered_zero_shot(
    reproduced: Project, test_video: Path, tmp_path: Path
) -> None:
    video = shutil.copy(test_video, tmp_path)
    output = reproduced.invoke("predict", str(video), "--query", "A cat")
    assert "similarity" in output
    assert f"note: {MODEL} was trained on the rendered sample, and {video} is not of it" in output
    output = reproduced.invoke("predict", str(video), "--query", "A cat", "--model", MODEL)
    assert "confidence" in output
    assert "rendered" not in output


def test_the_command_prints_for_people_too(reproduced: Project, test_video: Path) -> None:
    queries = ("--query", "A cat", "--query", "A dog")
    output = reproduced.invoke("predict", str(test_video), *queries, "--model", MODEL)
    assert output.index("A cat") < output.index("A dog")
    assert "confidence" in output


@pytest.mark.parametrize("columns", [80, 33])
def test_the_curve_of_a_long_video_is_one_line(
    reproduced: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """250 clips. Here stdout is no terminal, so the line is 80 columns wide, or COLUMNS."""
    video = write_video(tmp_path / "long.mp4", 500, fps=1, size=(64, 48))
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns != 80:
        monkeypatch.setenv("COLUMNS", str(columns))
    asked = [str(video), "--query", "A cat", "--model", str(reproduced.folder / MODEL)]
    result = CliRunner().invoke(command, [*asked, "--device", "cpu"], catch_exceptions=False)
    (curve,) = [line for line in result.stdout.splitlines() if line.startswith("  clips  ")]
    assert len(curve) == columns
    assert set(curve.removeprefix("  clips  ")) <= set("▁▂▃▄▅▆▇█")
    assert len(result.stdout.splitlines()) == 1 + 5 + 1, "the query, the windows, the curve"
    row = json.loads(CliRunner().invoke(command, [*asked, "--device", "cpu", "--json"]).stdout)
    assert len(row["pred_saliency_scores"]) == 250


def test_a_missing_video_is_one_line_and_exit_code_2(reproduced: Project) -> None:
    output = reproduced.run("mrmodel", "predict", "no.mp4", "--query", "a", code=2)
    assert output.startswith("error: no.mp4")
    assert "Traceback" not in output


def test_other_encoders_are_refused(reproduced: Project, tmp_path: Path) -> None:
    config = json.loads(reproduced.read(f"{MODEL}/config.json"))
    config["video_streams"][0]["fingerprint"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(reproduced.read(f"{MODEL}/model.safetensors"))
    arguments = ("predict", "a.mp4", "--query", "a", "--model", str(tmp_path))
    output = reproduced.invoke(*arguments, code=2)
    assert "not the one that the model was trained with" in output
