"""The three systems of SG-DETR, from recorded raw outputs to recorded windows.

Cases are named as the published values of a data set (`charades` ...) or as what they try.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mrmodel import presets
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.config.schema import parse_config
from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.models.sg_detr.fusion import fuse, windows_of
from mrmodel.models.sg_detr.output import RawDetections
from mrmodel.predict.postprocess import Decoded, Postprocess, RawPredictions, decode
from mrmodel.spans import xx_to_cxw
from tests.postprocessing import postprocess

from .folder import GOLDEN, load

FOLDER = GOLDEN / "model_sg_detr"
CASES = ("qvhighlights", "charades", "tacos", "no_auxiliary_candidates")
# Suppression among the decoder's windows, which no published run has: name -> exponent of p.
SUPPRESSED = {"nms_probs": 1.0, "nms_combo": 0.5, "nms_quality": 0.0}
# Our names of the systems and those of the recording.
SYSTEMS = {"decoder": "detr", "anchors": "auxiliary", None: "combined"}
FUSIONS = load(FOLDER / "fusion.json")["cases"]
# Seconds of one unit of the anchors, and their widths plus one.
UNIT_S, SIZES = 2.0, (4, 16, 32, 64)


def recorded(case: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(FOLDER / f"postprocess_{case}.npz") as arrays:
        inputs = {name.removeprefix("in/"): arrays[name] for name in arrays.files}
    return inputs, load(FOLDER / f"postprocess_{case}.json")


def raw_detections(inputs: dict[str, np.ndarray]) -> RawDetections:
    """The recorded heads; windows of the anchors are decoded with the "+1" convention."""
    spans = []
    for level, size in enumerate(SIZES):
        shift, stretch = np.moveaxis(inputs[f"atss_regression/{level}"], -1, 0)
        centre = 2.0 ** (level - 1) * (np.arange(shift.shape[1]) + 0.5) + shift * size / 10
        width = np.exp(np.minimum(stretch / 5, np.log(62.5))) * size - 1
        spans.append(np.stack([centre - width / 2, centre + width / 2], axis=-1))
    windows = UNIT_S * np.concatenate(spans, axis=1) / inputs["duration_s"][:, None, None]

    def joined(name: str) -> torch.Tensor:
        levels = [inputs[f"{name}/{level}"][..., 0] for level in range(len(SIZES))]
        return torch.from_numpy(np.concatenate(levels, axis=1))

    return RawDetections(
        torch.from_numpy(inputs["pred_logits"][..., 0]),
        torch.from_numpy(inputs["pred_spans"]),
        torch.from_numpy(inputs["pred_quality_scores"][..., 0]),
        joined("atss_logits"),
        joined("atss_centerness"),
        xx_to_cxw(torch.from_numpy(windows)),
    )


def section(golden: dict[str, Any], **changes: Any) -> PostprocessConfig:
    """The section `postprocess` with the recorded values."""
    steps, fusion = golden["postprocessor"], golden["combiner"]

    def selection(values: dict[str, Any]) -> dict[str, Any]:
        return {
            "top_k": 10000,
            "nms_iou": values["nms_thresh"],
            "keep": values["fpn_post_nms_top_n"],
            "min_score": values["pre_nms_thresh"],
            "keep_empty": True,
        }

    values = {
        "alpha": 0.5,
        "anchors": selection(fusion),
        "anchors_alone": selection(golden["preparator"]),
        "fusion": {
            "iou_thr": fusion["iou_thr"],
            "weights": [float(weight) for weight in fusion["weights"]],
            "skip": float(fusion["skip_box_thr"]),
        },
        "official": {
            "max_end_s": float(steps["max_ts_val"]),
            "round_to_s": float(steps["clip_length"]),
            "min_window_s": float(steps["min_w_l"]),
        },
        "max_windows": 100,
    }
    return postprocess(**values | changes)


def answers(
    inputs: dict[str, np.ndarray], way: Postprocess, clip_len_s: float, factor: float = 1.0
) -> list[Decoded]:
    spans, scores = windows_of(raw_detections(inputs), way.candidates, way.system)
    raw = RawPredictions(
        spans_cxw=spans.numpy(),
        scores=factor * scores.numpy(),
        saliency=inputs["saliency_scores"],
        clip_mask=inputs["src_vid_mask"] > 0,
        duration_s=inputs["duration_s"],
        clip_len_s=clip_len_s,
    )
    return decode(raw, way.finish)


def assert_windows(
    found: Decoded, expected: list[list[float]], score_tolerance: float = 1e-7
) -> None:
    """Ends are recorded in single or double precision, and are multiples of at least 0.05 s."""
    ours, theirs = np.array(found.windows), np.array(expected)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=0, atol=score_tolerance)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("case", CASES)
def test_a_system_gives_the_recorded_windows(case: str, system: str | None) -> None:
    inputs, golden = recorded(case)
    config = section(golden)
    way = Postprocess.published(config, QVHighlights().official_postprocess(2.0)).alone(system)
    # Ours are the published scores of fusion divided by the highest possible one.
    weights = config.fusion.weights
    factor = 2 * max(weights) / sum(weights) if system is None else 1.0
    found = answers(inputs, way, golden["clip_len_s"], factor)
    expected = golden["final"][SYSTEMS[system]]
    assert len(found) == len(expected)
    for ours, windows in zip(found, expected, strict=True):
        if windows:
            assert_windows(ours, windows)
        else:  # nothing above the threshold: a query needs a window to be scored
            assert ours.windows == ((-1.0, 1.0, 0.0),)
    for ours, clips in zip(found, golden["saliency_half"], strict=True):
        assert list(ours.saliency) == clips


@pytest.mark.parametrize("case", ["qvhighlights", "charades", "tacos"])
def test_presets_have_the_published_values(case: str) -> None:
    found = parse_config(yaml.safe_load(presets.render(f"{case}_sg_detr"))).postprocess
    published = section(recorded(case)[1])
    assert (found.alpha, found.fusion, found.official) == (
        published.alpha,
        published.fusion,
        published.official,
    )
    assert found.anchors == published.anchors
    assert (found.anchors_alone or found.anchors) == published.anchors_alone


def test_the_order_of_the_decoder_is_not_that_of_its_scores() -> None:
    _, golden = recorded("qvhighlights")
    for windows in golden["final"]["detr"]:
        scores = [window[2] for window in windows]
        assert scores != sorted(scores, reverse=True)


@pytest.mark.parametrize("case", SUPPRESSED)
def test_suppression_of_decoder_windows_by_any_score(case: str) -> None:
    inputs, golden = recorded(case)
    config = section(golden, alpha=SUPPRESSED[case], fusion={"enabled": False})
    way = Postprocess.published(config, QVHighlights().official_postprocess(2.0))
    steps = golden["postprocessor"]
    finish = dataclasses.replace(
        way.finish, nms_iou=steps["nms_threshold"], move=steps["move_window_method"]
    )
    found = answers(inputs, dataclasses.replace(way, finish=finish), golden["clip_len_s"])
    for ours, windows in zip(found, golden["final"]["detr"], strict=True):
        # The published score is of probabilities with four decimals, ours gets them at the end.
        assert_windows(ours, windows, 2e-4 if case == "nms_combo" else 1e-7)


@pytest.mark.parametrize("case", FUSIONS, ids=lambda case: case["name"])
def test_fusion_gives_the_recorded_segments(case: dict[str, Any]) -> None:
    settings = postprocess(
        fusion={
            "iou_thr": case["iou_thr"],
            "weights": [float(weight) for weight in case["weights"]],
            "skip": case["skip_box_thr"],
        }
    ).fusion
    spans = [torch.tensor(boxes).reshape(1, -1, 2).clamp(0.0, 1.0) for boxes in case["boxes"]]
    scores = [torch.tensor(values).reshape(1, -1) for values in case["scores"]]
    ends, fused = (values[0] for values in fuse(spans, scores, settings))
    order = fused.argsort(descending=True)[: len(case["out_scores"])]
    assert (fused > 0).sum() == len(order)
    expected = np.array(case["out_boxes"]).reshape(-1, 2)
    np.testing.assert_allclose(ends[order].numpy(), expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(fused[order].numpy(), case["out_scores"], rtol=0, atol=2e-7)
