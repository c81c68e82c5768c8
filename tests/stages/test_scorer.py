import pytest
import yaml

from mrmodel.config.schema import Config, parse_config
from mrmodel.predict.postprocess import PostprocessSettings
from mrmodel.stages.scorer import Scorer
from tests.postprocessing import postprocess
from tests.project import ROOT

TRUTH = [
    {
        "qid": qid,
        "query": "a",
        "vid": f"v{qid}",
        "duration": 20.0,
        "relevant_windows": [[2.0, 8.0]],
        "relevant_clip_ids": [1, 2, 3],
        "saliency_scores": [[4, 4, 4]] * 3,
    }
    for qid in (1, 2)
]
FOUND = {
    "qid": 1,
    "pred_relevant_windows": [[2.0, 8.0, 0.9]],
    "pred_saliency_scores": [0, 1, 1, 1, 0, 0, 0, 0, 0, 0],
}


def judge(mode: str) -> Scorer:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    config: Config = parse_config(raw | {"evaluate": {**raw["evaluate"], "mode": mode}})
    return Scorer(config)


def test_a_query_without_prediction_is_a_miss_in_clean_mode() -> None:
    clean = judge("clean")
    assert clean.main_metrics(clean.score(TRUTH, [FOUND]))["MR-full-R1@0.5"] == 50.0


def test_official_mode_scores_the_others(caplog: pytest.LogCaptureFixture) -> None:
    official = judge("official")
    assert official.main_metrics(official.score(TRUTH, [FOUND]))["MR-full-R1@0.5"] == 100.0
    assert "1 of 2 queries have no prediction" in caplog.text


def test_the_figure_that_chooses_comes_first_and_undefined_ones_are_left_out() -> None:
    clean = judge("clean")
    metrics = clean.main_metrics(clean.score(TRUTH, [FOUND]))
    assert next(iter(metrics)) == "MR-full-mAP"
    assert "MR-long-mAP" not in metrics


def test_official_windows_are_finished_the_published_way() -> None:
    assert judge("official").postprocess(postprocess()).finish.clamp_s == (0.0, 150.0)
    chosen = postprocess(round_to_clips=False, nms_iou=0.4, max_windows=3)
    assert judge("clean").postprocess(chosen).finish == PostprocessSettings(
        max_windows=3, nms_iou=0.4
    )
    assert judge("clean").postprocess(postprocess()).finish.round_to_s == 2.0


def test_official_windows_may_be_finished_as_the_model_s_authors_do() -> None:
    last = {"max_end_s": 200.0, "round_to_s": 0.1, "min_window_s": 1.0}
    chosen = postprocess(official=last, max_windows=7)
    assert judge("official").postprocess(chosen).finish == PostprocessSettings(
        official=True,
        by_clips=True,
        clamp_s=(0.0, 200.0),
        round_to_s=0.1,
        min_window_s=1.0,
        move="center",
        max_windows=7,
    )
    assert judge("clean").postprocess(chosen).finish == PostprocessSettings(
        round_to_s=2.0, max_windows=7
    )
