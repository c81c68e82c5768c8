"""Detection scores, choice of anchors and weighted boxes fusion, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from mrmodel.models.sg_detr.fusion import (
    combine,
    detection_scores,
    fuse,
    select_anchors,
)
from mrmodel.models.sg_detr.output import RawDetections
from mrmodel.spans import cxw_to_xx
from tests.postprocessing import postprocess
from tests.rounding import rounding

LOWEST = torch.finfo(torch.float32).min
Span = tuple[float, float, float]


def fuse_lists(first: list[Span], second: list[Span], **changes: Any) -> list[Span]:
    """`fuse` for one sample of (start, end, score), without unused columns."""
    tables = [
        torch.tensor(spans, dtype=torch.float32).reshape(1, -1, 3) for spans in (first, second)
    ]
    spans, scores = fuse(
        [table[..., :2] for table in tables],
        [table[..., 2] for table in tables],
        postprocess(fusion={"iou_thr": 0.55} | changes).fusion,
    )
    found = torch.cat((spans, scores[..., None]), dim=-1)[0]
    empty = (spans[0, :, 0] == spans[0, :, 1]) & (scores[0] == 0)
    assert (empty | (scores[0] > 0)).all()
    return [tuple(row) for row in found[~empty].tolist()]


def plain_fusion(
    models: list[list[Span]], weights: list[float], thr: float, skip: float, conf: str
) -> list[Span]:
    """Section 6.1 word by word, one span at a time, in single precision."""
    f = np.float32
    pool = []
    for spans, weight in zip(models, weights, strict=True):
        for start, end, score in spans:
            low, high = min(f(start), f(end)), max(f(start), f(end))
            if f(score) >= f(skip) and f(score) > 0 and high > low:
                pool.append((low, high, f(score) * f(weight)))
    pool.sort(key=lambda span: -span[2])
    clusters: list[list[Any]] = []
    fused: list[Any] = []
    for span in pool:
        ious = [plain_iou(span, other) for other in fused]
        best = max(range(len(ious)), key=lambda place: ious[place]) if ious else -1
        if best >= 0 and ious[best] > f(thr):
            clusters[best].append(span)
            total = sum((member[2] for member in clusters[best]), f(0))
            fused[best] = tuple(
                sum((member[2] * member[end] for member in clusters[best]), f(0)) / total
                for end in (0, 1)
            )
        else:
            clusters.append([span])
            fused.append(span[:2])
    answers = []
    for ends, members in zip(fused, clusters, strict=True):
        scores = [float(member[2]) for member in members]
        if conf == "max":
            score = max(scores) / max(weights)
        else:
            score = sum(scores) / len(scores) * min(len(models), len(scores)) / sum(weights)
        answers.append((float(ends[0]), float(ends[1]), score))
    return answers


def plain_iou(first: Any, second: Any) -> Any:
    shared = max(min(first[1], second[1]) - max(first[0], second[0]), np.float32(0))
    union = (second[1] - second[0]) + (first[1] - first[0]) - shared
    return shared / max(union, np.float32(1e-8))


def detections(batch: int, queries: int = 5, anchors: int = 12, seed: int = 0) -> RawDetections:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    return RawDetections(
        normal(batch, queries),
        normal(batch, queries, 2).sigmoid(),
        normal(batch, queries),
        normal(batch, anchors),
        normal(batch, anchors),
        normal(batch, anchors, 2).mul(0.3).add(0.5),
    )


# Detection scores.


def test_scores_are_the_geometric_mix() -> None:
    # p = .8 and IoU = .5: logits ln 4 and 0; .8^.25 * .5^.75 = .9457 * .5946 = .5623.
    score = detection_scores(torch.tensor([np.log(4.0)]), torch.tensor([0.0]), 0.25)
    assert score.item() == pytest.approx(0.5623, abs=1e-4)
    assert detection_scores(torch.tensor([np.log(4.0)]), None, 0.25).item() == pytest.approx(0.8)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("other", [0.0, LOWEST])
def test_a_probability_of_0_has_a_finite_score_and_slope(alpha: float, other: float) -> None:
    for lowest in (-200.0, LOWEST, -torch.inf):
        logits = torch.tensor([lowest], requires_grad=True)
        quality = torch.tensor([other], requires_grad=True)
        score = detection_scores(logits, quality, alpha)
        # 0^0 = 1: with alpha = 0 only the IoU counts.
        assert score.item() == pytest.approx(0.5 if alpha == 0.0 and other == 0.0 else 0.0)
        score.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert quality.grad is not None
        assert quality.grad.isfinite().all()


# Choice of anchors.


def plain_anchors(raw: RawDetections, row: int, topk: int, nms: float, keep: int) -> list[Span]:
    assert raw.anchor_logits is not None
    assert raw.anchor_spans_cxw is not None
    scores = detection_scores(raw.anchor_logits, raw.anchor_centerness, 0.5)[row].numpy()
    spans = cxw_to_xx(raw.anchor_spans_cxw)[row].clamp(0, 1).numpy()
    order = sorted(
        (i for i in range(len(scores)) if scores[i] > 0 and spans[i, 1] > spans[i, 0]),
        key=lambda i: -scores[i],
    )
    kept: list[int] = []
    for place in order[:topk]:
        if all(not plain_iou(spans[place], spans[other]) > np.float32(nms) for other in kept):
            kept.append(place)
    return [(*spans[place].tolist(), float(scores[place])) for place in kept[:keep]]


@pytest.mark.parametrize(("topk", "nms", "keep"), [(12, 0.6, 4), (5, 0.3, 25), (100, 1.0, 12)])
def test_anchors_are_those_of_a_plain_suppression(topk: int, nms: float, keep: int) -> None:
    raw = detections(40)
    assert raw.anchor_logits is not None
    raw.anchor_logits[:, 3] = LOWEST
    raw.anchor_logits[::2, 5] = raw.anchor_logits[::2, 7]
    settings = postprocess(anchors={"top_k": topk, "nms_iou": nms, "keep": keep}).anchors
    spans, scores = select_anchors(raw, settings)
    assert spans.shape == (40, keep, 2)
    for row in range(40):
        expected = plain_anchors(raw, row, topk, nms, keep)
        found = [
            (*span, score)
            for span, score in zip(spans[row].tolist(), scores[row].tolist(), strict=True)
        ]
        assert found[: len(expected)] == expected
        assert all(unused == (0.0, 0.0, 0.0) for unused in found[len(expected) :])


def test_anchors_outside_the_video_or_absent_are_none() -> None:
    raw = RawDetections(
        torch.zeros(1, 1), torch.zeros(1, 1, 2), None,
        torch.tensor([[4.0, LOWEST, 0.0]]), torch.tensor([[4.0, LOWEST, 0.0]]),
        torch.tensor([[[1.5, 0.5], [0.5, 0.5], [0.9, 0.4]]]),
    )  # fmt: skip
    spans, scores = select_anchors(raw, postprocess(anchors={"keep": 3}).anchors)
    assert spans[0].tolist() == [pytest.approx([0.7, 1.0]), [0.0, 0.0], [0.0, 0.0]]
    assert scores[0].tolist() == [pytest.approx(0.5), 0.0, 0.0]
    # As published, the one outside keeps its place, at the end of the video.
    settings = postprocess(anchors={"keep": 1, "keep_empty": True}).anchors
    spans, scores = select_anchors(raw, settings)
    assert spans.tolist() == [[[1.0, 1.0]]]
    assert scores[0].tolist() == [pytest.approx(torch.tensor(4.0).sigmoid().item())]


# Fusion.


grid = st.integers(0, 16).map(lambda number: number / 16)
span = st.tuples(grid, grid, st.integers(0, 50).map(lambda number: number / 50))
model = st.lists(span, max_size=8)
weight = st.sampled_from([0.3, 0.7, 1.0, 1.9])


@examples(max_examples=150, deadline=None)
@given(model, model, weight, weight, st.sampled_from([0.0, 0.21, 0.55, 0.81, 1.0]),
       st.sampled_from([0.0, 0.3]), st.sampled_from(["avg", "max"]))  # fmt: skip
def test_fusion_equals_a_plain_loop(
    first: list[Span], second: list[Span], w1: float, w2: float, thr: float, skip: float, conf: str
) -> None:
    expected = plain_fusion([first, second], [w1, w2], thr, skip, conf)
    found = fuse_lists(first, second, weights=[w1, w2], iou_thr=thr, skip=skip, conf=conf)
    assert len(found) == len(expected)
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=1e-6)


# Candidates.


@pytest.mark.parametrize("conf", ["avg", "max"])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [2.0, 0.1]])
@pytest.mark.parametrize("fuses", [True, False])
def test_candidates_are_in_the_video_and_ranked(
    conf: Any, weights: list[float], fuses: bool
) -> None:
    raw = detections(30)
    raw.logits += 8.0
    assert raw.iou_logits is not None
    raw.iou_logits += 8.0
    settings = postprocess(fusion={"enabled": fuses, "conf": conf, "weights": weights})
    spans, scores = combine(raw, settings)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert (scores.diff(dim=1) <= 0).all()
    assert (spans[..., 1] >= 0).all()
    ends = cxw_to_xx(spans)
    assert ends.min() >= -1e-6
    assert ends.max() <= 1 + 1e-6


def test_without_anchors_nothing_is_fused() -> None:
    raw = detections(2)
    apart = combine(raw, postprocess(fusion={"enabled": False}))
    raw.anchor_logits = raw.anchor_centerness = raw.anchor_spans_cxw = None
    for found, expected in zip(combine(raw, postprocess()), apart, strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="no anchors"):
        select_anchors(raw, postprocess().anchors)


@pytest.mark.parametrize("fuses", [True, False])
def test_neither_batch_mates_nor_absent_anchors_matter(fuses: bool) -> None:
    raw = detections(37, anchors=11)
    settings = postprocess(anchors={"keep": 6}, fusion={"enabled": fuses})
    together = combine(raw, settings)
    padded = detections(37, anchors=19, seed=1)
    for name, fill in (
        ("anchor_logits", LOWEST), ("anchor_centerness", LOWEST), ("anchor_spans_cxw", 1e4)
    ):  # fmt: skip
        # Absent anchors stand between the others, as those of a longer level do.
        getattr(padded, name)[:, 4:12] = fill
        getattr(padded, name)[:, :4] = getattr(raw, name)[:, :4]
        getattr(padded, name)[:, 12:] = getattr(raw, name)[:, 4:]
    padded.logits, padded.spans_cxw, padded.iou_logits = raw.logits, raw.spans_cxw, raw.iou_logits
    # The scores are powers taken at other places of a vector; the ends of a fused window are means
    # of at most eleven, weighed by the scores. A wrong neighbour moves them by 0.01 or more.
    close = {"rtol": 0.0, "atol": rounding(11, stages=2)}
    for found, expected in zip(combine(padded, settings), together, strict=True):
        torch.testing.assert_close(found, expected, **close)
    for row in range(0, 37, 6):
        parts = {name: getattr(raw, name)[row : row + 1] for name in raw.__slots__}
        alone = combine(RawDetections(**parts), settings)
        for found, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(found[0], expected[row], **close)
