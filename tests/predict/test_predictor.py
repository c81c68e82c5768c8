"""Predictors: what they refuse, and which one answers where none is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mrmodel.errors import DataError, FeatureError, FeatureMismatch
from mrmodel.predict.predictor import Predictor, SearchableVideo
from mrmodel.predict.serving import SERVING
from mrmodel.stages.served import choose_model
from mrmodel.types import Moment, QueryResult
from tests.cases.models import write_model, write_short_video

QUERIES = ["a dog runs", "red"]
MODEL = Path("models/served/moment_detr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a served model, rendered videos in data/sample, and another video."""
    folder = tmp_path_factory.mktemp("project")
    model = write_model(folder / "models/served/moment_detr")
    config = json.loads((model / "config.json").read_text())
    config["training"] = {"run": "finetune", "corpus": "sample"}
    (model / "config.json").write_text(json.dumps(config))
    videos = folder / "data/sample/videos"
    videos.mkdir(parents=True)
    write_short_video(videos / "test-0001.mp4")
    shutil.copy(videos / "test-0001.mp4", folder / "holiday.mp4")
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder / "models/served/moment_detr", "cpu")


@pytest.fixture(scope="module")
def video(predictor: Predictor, folder: Path) -> SearchableVideo:
    return predictor.encode(folder / "holiday.mp4")


def test_results_are_in_the_order_of_the_queries(
    predictor: Predictor, video: SearchableVideo
) -> None:
    results = predictor.search(video, [*QUERIES, QUERIES[0]])
    assert [one.query for one in results] == [*QUERIES, QUERIES[0]]
    assert results[0] == results[2]
    for result in results:
        assert (result.vid, result.duration_s, result.clip_len_s) == ("holiday", 8.0, 2.0)
        assert len(result.clip_scores) == 4
        scores = [moment.score for moment in result.moments]
        assert scores == sorted(scores, reverse=True)
        assert result.in_video_probability is None
    assert predictor.search(video, []) == []


def test_the_row_of_a_result() -> None:
    moments = (Moment(2.0, 4.0, 0.5), Moment(0.0, 2.0, 0.25))
    result = QueryResult("red", "v", 8.0, 2.0, moments, (0.5, 1.5), unread_tokens=0.5)
    assert list(result.as_row(7, top=1).items()) == [
        ("qid", 7),
        ("query", "red"),
        ("vid", "v"),
        ("pred_relevant_windows", [[2.0, 4.0, 0.5]]),
        ("pred_saliency_scores", [0.5, 1.5]),
        ("unread_tokens", 0.5),
        ("duration", 8.0),
    ]


def test_one_text_is_no_list_of_queries(predictor: Predictor, video: SearchableVideo) -> None:
    with pytest.raises(DataError, match=r"queries = 'a dog': expected a list of sentences"):
        predictor.search(video, "a dog")


def test_rows_of_other_encoders_are_refused(predictor: Predictor, video: SearchableVideo) -> None:
    (stream,) = video.encoders
    other = dataclasses.replace(stream, fingerprint="0" * 64)
    with pytest.raises(FeatureMismatch, match=r"holiday: encoded by tiny\.video 000000000000, and"):
        predictor.search(dataclasses.replace(video, encoders=(other,)), QUERIES)


def test_encoders_without_a_common_space_are_refused() -> None:
    for streams in (("embedded.motion", "embedded.text"), ("tiny.video", "embedded.text")):
        with pytest.raises(FeatureError, match=f"{streams[0]} and {streams[1]}: .* share no space"):
            Predictor.zero_shot(streams)


@pytest.fixture
def rendered(folder: Path, request: pytest.FixtureRequest) -> Path:
    """The folder, where serving.json says whether the corpus was rendered; None: it does not."""
    path = folder / "models/served/moment_detr" / SERVING
    content = {
        key: value for key, value in json.loads(path.read_text()).items() if key != "rendered"
    }
    path.write_text(json.dumps(content | ({} if request.param is None else request.param)))
    return folder


@pytest.mark.parametrize(
    ("rendered", "video", "zero_shot"),
    [
        ({"rendered": True}, "holiday.mp4", True),
        ({"rendered": True}, "data/sample/videos/test-0001.mp4", False),
        ({"rendered": False}, "holiday.mp4", False),
        (None, "holiday.mp4", False),
    ],
    indirect=["rendered"],
)
def test_which_model_answers(
    rendered: Path, video: str, zero_shot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rendered)
    predictor, note = choose_model(None, [Path(video)], "cpu")
    assert predictor.is_zero_shot is zero_shot
    named = "models/served/moment_detr was trained on the rendered sample, and holiday.mp4 is not"
    assert note.startswith(named) if zero_shot else note == ""
    assert choose_model("models/served/moment_detr", [Path(video)], "cpu").note == ""


@pytest.mark.parametrize("rendered", [{"rendered": True}], indirect=True)
def test_videos_that_were_encoded_for_zero_shot_are_answered_so(
    rendered: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rendered)
    video = [rendered / "data/sample/videos/test-0001.mp4"]
    trained = [str(stream.fingerprint) for stream in predictor.config.video_streams]
    similar = [str(one.fingerprint) for one in Predictor.zero_shot().config.video_streams]
    chosen, note = choose_model(None, video, "cpu", encoded=similar)
    assert chosen.is_zero_shot
    assert note.endswith(f"`mrmodel index refresh --model {MODEL}` encodes them for it")
    for encoded in (trained, similar + trained, ["0" * 64]):
        chosen, note = choose_model(None, video, "cpu", encoded=encoded)
        assert (chosen.is_zero_shot, note) == (False, "")
    assert not choose_model(str(MODEL), video, "cpu", similar).predictor.is_zero_shot


def test_without_a_model_the_answer_is_zero_shot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    predictor, note = choose_model(None, [Path("a.mp4")], "cpu")
    assert predictor.is_zero_shot
    assert note.startswith("no trained model in models/served")
    assert choose_model("zero-shot", [Path("a.mp4")], "cpu").predictor.is_zero_shot
