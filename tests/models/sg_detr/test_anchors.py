"""Anchors and their assignment: by hand, against a triple loop, and their statistics."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.anchors import (
    CENTRE_UNIT,
    LOG_WIDTH_UNIT,
    MAX_LOG_WIDTH,
    AnchorGrid,
    anchor_grid,
    assign,
    decode,
)
from mrmodel.models.sg_detr.output import AnchorTargets
from mrmodel.models.sg_detr.settings import AtssSettings
from mrmodel.spans import cxw_to_xx
from tests.rounding import rounding

SMALL = AtssSettings(levels=2, anchor_scale=2.0, topk=2)
Spans = list[tuple[float, float]]


def encode(spans_cxw: Tensor, anchors_cxw: Tensor, coding: str) -> Tensor:
    """Regression outputs (..., 2) that `decode` turns into `spans_cxw`.

    Factors beyond e^4 are cut there; so is a negative distance, the case of ``ltrb`` when an
    anchor's centre lies outside its span.
    """
    spans, anchors = spans_cxw.float(), anchors_cxw.float()
    centre, width = anchors.unbind(-1)
    if coding == "ltrb":
        start, end = cxw_to_xx(spans).unbind(-1)
        distances = torch.stack((centre - start, end - centre), dim=-1)
        return _bounded_log(2.0 * distances / width.unsqueeze(-1)) / LOG_WIDTH_UNIT
    shift = (spans[..., 0] - centre) / (CENTRE_UNIT * width)
    return torch.stack((shift, _bounded_log(spans[..., 1] / width) / LOG_WIDTH_UNIT), dim=-1)


def _bounded_log(factors: Tensor) -> Tensor:
    """Logarithm within +-`MAX_LOG_WIDTH`."""
    bound = math.exp(MAX_LOG_WIDTH)
    return factors.clamp(1.0 / bound, bound).log()


def mask_of(lengths: list[int], padding: int = 0) -> Tensor:
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


def windows_of(lengths: list[int], spans: list[Spans], padding: int = 0) -> PaddedWindows:
    """Windows given as (start, end) in clips."""
    most = max(map(len, spans), default=0) + padding
    table = torch.full((len(spans), most, 2), 0.5)
    valid = torch.zeros(len(spans), most, dtype=torch.bool)
    for sample, (length, own) in enumerate(zip(lengths, spans, strict=True)):
        for index, (start, end) in enumerate(own):
            table[sample, index, 0] = (start + end) / 2 / length
            table[sample, index, 1] = (end - start) / length
            valid[sample, index] = True
    return PaddedWindows(table, valid, int(valid.sum()))


def assigned(
    lengths: list[int], spans: list[Spans], options: AtssSettings, padding: int = 0
) -> tuple[AnchorGrid, AnchorTargets]:
    grid = anchor_grid(mask_of(lengths, padding), options)
    return grid, assign(grid, windows_of(lengths, spans, padding), options)


def test_grid_of_a_pyramid() -> None:
    grid = anchor_grid(mask_of([5, 2]), SMALL)
    assert grid.level_sizes == (5, 3)
    assert grid.level.tolist() == [0] * 5 + [1] * 3
    # The last anchor of level 1 sits at 5 of 5 clips: behind the end.
    assert grid.valid.tolist() == [
        [True] * 7 + [False],
        [True] * 2 + [False] * 3 + [True] + 2 * [False],
    ]
    assert grid.spans_cxw[0, 1].tolist() == pytest.approx([1.5 / 5, 2 / 5])
    assert grid.spans_cxw[0, 6].tolist() == pytest.approx([3 / 5, 4 / 5])
    assert grid.spans_cxw[1, 5].tolist() == pytest.approx([1 / 2, 4 / 2])


def test_grid_of_one_level_with_several_widths() -> None:
    grid = anchor_grid(mask_of([3]), AtssSettings(layout="multi_width", widths=[2.0, 5.0]))
    assert grid.centre.tolist() == [0.5, 1.5, 2.5] * 2
    assert grid.width.tolist() == [2.0] * 3 + [5.0] * 3
    assert bool(grid.valid.all())


def test_one_clip_has_one_anchor_that_takes_its_window() -> None:
    grid, targets = assigned([1], [[(0.0, 1.0)]], AtssSettings())
    assert grid.valid.sum() == 1
    assert targets.window.tolist() == [[0, -1, -1, -1, -1]]
    assert float(targets.centerness[0, 0]) == 1.0


def test_window_by_hand() -> None:
    # Anchors: level 0 at .5 1.5 2.5 3.5, width 2; level 1 at 1 3, width 4. Window [1, 2.5].
    # Candidates 1.5, 2.5, 1, 3 with IoU 1.5/2 = .75, 1/2.5 = .4, 1.5/4 = .375, .375; mean .475,
    # sample deviation sqrt((.275^2 + .075^2 + .1^2 + .1^2) / 3) = .1837; threshold .6587.
    _, targets = assigned([4], [[(1.0, 2.5)]], SMALL)
    assert targets.window.tolist() == [[-1, 0, -1, -1, -1, -1]]
    # Distances to the ends .5 and 1.
    assert float(targets.centerness[0, 1]) == pytest.approx(math.sqrt(0.5))
    assert targets.centerness.count_nonzero() == 1
    linear = SMALL.model_copy(update={"centerness_pow": 1.0})
    assert float(assigned([4], [[(1.0, 2.5)]], linear)[1].centerness[0, 1]) == pytest.approx(0.5)


def test_rescue_by_hand() -> None:
    # Window [1, 3]: candidates 1.5, 2.5, 1, 3 with IoU 1.5/2.5 = .6, .6, 2/4 = .5, .5; mean .55,
    # deviation sqrt(4 * .05^2 / 3) = .0577: nothing reaches .6077. The first of .6 is taken, its
    # distances to the ends are .5 and 1.5.
    _, targets = assigned([4], [[(1.0, 3.0)]], SMALL)
    assert targets.window.tolist() == [[-1, 0, -1, -1, -1, -1]]
    assert float(targets.centerness[0, 1]) == pytest.approx(math.sqrt(1 / 3))


def test_conflict_by_hand() -> None:
    # [.5, 2.5] equals anchor 1.5 (IoU 1; threshold .857 from 1, 1/3, 1/2, 1/3) and takes it from
    # [1, 2.5] (IoU .75), whose best free one is 2.5 (IoU .4): centred on the end, so floor .05.
    _, targets = assigned([4], [[(1.0, 2.5), (0.5, 2.5)]], SMALL)
    assert targets.window.tolist() == [[-1, 1, 0, -1, -1, -1]]
    assert targets.centerness[0, 1:3].tolist() == pytest.approx([1.0, 0.05])


def test_equal_windows_go_to_the_lower_index() -> None:
    _, targets = assigned([4], [[(1.0, 2.5), (1.0, 2.5)]], SMALL)
    assert targets.window.tolist() == [[-1, 0, 1, -1, -1, -1]]


def test_no_windows() -> None:
    _, targets = assigned([4, 3], [[], []], SMALL)
    assert bool((targets.window == -1).all())
    assert bool((targets.centerness == 0).all())


def overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    shared = max(0.0, min(end, other_end) - max(start, other_start))
    return shared / (end - start + other_end - other_start - shared)


def on_raster(centre: float, width: float, length: int) -> tuple[float, float]:
    """Float32 window to (start, end) in clips, multiples of 1/1024."""
    middle = round(1024 * float(np.float32(centre) * np.float32(length)))
    half = max(1, round(512 * float(np.float32(width) * np.float32(length))))
    return (middle - half) / 1024, (middle + half) / 1024


def levels_of(length: int, options: AtssSettings) -> list[list[tuple[float, float]]]:
    """(centre, width) of the anchors of each level, in clips, of a sample on its own."""
    if options.layout == "multi_width":
        return [[(clip + 0.5, width) for clip in range(length)] for width in options.widths]
    strides = [2**level for level in range(options.levels)]
    return [
        [
            (first + stride / 2, options.anchor_scale * stride)
            for first in range(0, length, stride)
            if first + stride / 2 < length
        ]
        for stride in strides
    ]


def reference(
    length: int, spans: Spans, options: AtssSettings
) -> dict[tuple[int, int], tuple[int, float]]:
    """(level, index) -> (window, centerness) of positive anchors, one step after the other."""
    levels = levels_of(length, options)
    iou, wishes = {}, {}
    for window, (start, end) in enumerate(spans):
        candidates = []
        for level, anchors in enumerate(levels):
            for index, (centre, width) in enumerate(anchors):
                place = (level, index)
                iou[window, place] = overlap(start, end, centre - width / 2, centre + width / 2)
            order = sorted(
                range(len(anchors)), key=lambda i: (abs(anchors[i][0] - (start + end) / 2), i)
            )
            candidates += [(level, index) for index in order[: options.topk]]
        values = [iou[window, place] for place in candidates]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        for level, index in candidates:
            enough = iou[window, (level, index)] >= statistics.fmean(values) + spread - 1e-6
            if enough and start < levels[level][index][0] < end:
                wishes.setdefault((level, index), []).append(window)
    owner = {
        place: min(wanting, key=lambda window: (-iou[window, place], window))
        for place, wanting in wishes.items()
    }
    rescued = set()
    for window in [w for w in range(len(spans)) if w not in owner.values()]:
        free = [
            (level, index)
            for level, anchors in enumerate(levels)
            for index in range(len(anchors))
            if (level, index) not in owner
        ]
        if free:
            place = max(free, key=lambda place: iou[window, place])
            owner[place] = window
            rescued.add(place)
    result = {}
    for place, window in owner.items():
        centre = levels[place[0]][place[1]][0]
        before, after = centre - spans[window][0], spans[window][1] - centre
        ratio = max(0.0, min(before, after) / max(before, after))
        value = ratio**options.centerness_pow
        result[place] = (window, max(value, 0.05) if place in rescued else value)
    return result


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[Spans], AtssSettings]:
    options = AtssSettings(
        layout=draw(st.sampled_from(["pyramid", "pyramid", "multi_width"])),
        levels=draw(st.integers(1, 5)),
        anchor_scale=draw(st.sampled_from([1.0, 2.0, 3.0, 4.0])),
        widths=draw(st.sampled_from([[2.0, 4.0, 8.0], [3.0]])),
        topk=draw(st.integers(1, 9)),
        centerness_pow=draw(st.sampled_from([0.5, 1.0])),
    )
    lengths = draw(st.lists(st.integers(1, 12) | st.integers(13, 200), min_size=1, max_size=3))
    spans = []
    for length in lengths:
        half_clips = st.integers(0, 2 * length).map(lambda end: end / 2)
        anywhere = st.floats(0, length, allow_subnormal=False)
        tiny = st.tuples(anywhere, st.sampled_from([1e-4, 0.01, 0.3])).map(
            lambda x: (x[0], x[0] + x[1])
        )
        pair = st.tuples(half_clips, half_clips) | st.tuples(anywhere, anywhere) | tiny
        ordered = pair.map(lambda x: (min(x), max(x))).filter(lambda x: x[1] > x[0])
        spans.append(draw(st.lists(ordered, max_size=5)))
    return lengths, spans, options


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 9))
def test_assignment_equals_a_triple_loop(
    case: tuple[list[int], list[Spans], AtssSettings], padding: int
) -> None:
    lengths, spans, options = case
    grid = anchor_grid(mask_of(lengths, padding), options)
    windows = windows_of(lengths, spans, padding)
    targets = assign(grid, windows, options)
    assert not bool((targets.window >= 0)[~grid.valid].any())
    starts = [0, *np.cumsum(grid.level_sizes).tolist()]
    for sample, length in enumerate(lengths):
        own = [
            on_raster(*windows.spans_cxw[sample, index].tolist(), length)
            for index in range(len(spans[sample]))
        ]
        found = {}
        for anchor in (targets.window[sample] >= 0).nonzero().flatten().tolist():
            level = int(grid.level[anchor])
            found[level, anchor - starts[level]] = (
                int(targets.window[sample, anchor]),
                pytest.approx(float(targets.centerness[sample, anchor]), abs=1e-5),
            )
        assert reference(length, own, options) == found
        # A window goes without only when every anchor is taken.
        if len(found) < int(grid.valid[sample].sum()):
            assert {window for window, _ in found.values()} == set(range(len(own)))


def test_padding_and_neighbours_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    ends = torch.rand(6, 4, 2, generator=generator).sort(2)[0] * 21
    spans = [[(a, b) for a, b in row] for row in ends.tolist()]
    alone, expected = assigned([21], spans[:1], AtssSettings())
    batch, found = assigned([21, 40, 1, 7, 20, 21], spans, AtssSettings(), padding=11)
    for level in range(5):
        inside, outside = alone.level == level, batch.level == level
        size = int(inside.sum())
        window, centerness = found.window[0, outside], found.centerness[0, outside]
        assert torch.equal(window[:size], expected.window[0, inside])
        assert bool((window[size:] == -1).all())
        # A root of the same ratio, taken at another place of a vector.
        torch.testing.assert_close(
            centerness[:size], expected.centerness[0, inside], rtol=0, atol=rounding(1)
        )


def test_statistics_of_the_design() -> None:
    # Section 4.1: 147 anchors for 75 clips (145 of them centred inside the video), about 5.6
    # positives a window, never more than 10, never none; here for windows of one clip to the whole
    # video, evenly on a logarithmic scale.
    generator = torch.Generator().manual_seed(0)
    width = 75.0 ** torch.rand(2000, 1, generator=generator)
    start = torch.rand(2000, 1, generator=generator) * (75.0 - width)
    table = torch.stack((start + width / 2, width), dim=-1) / 75.0
    grid = anchor_grid(torch.ones(2000, 75, dtype=torch.bool), AtssSettings())
    windows = PaddedWindows(table, torch.ones(2000, 1, dtype=torch.bool), 2000)
    positives = (assign(grid, windows, AtssSettings()).window == 0).sum(1).float()
    assert (grid.centre.numel(), int(grid.valid[0].sum())) == (147, 145)
    assert float(positives.mean()) == pytest.approx(5.6, abs=0.3)
    assert 1 <= int(positives.min()) <= int(positives.max()) <= 10


@pytest.mark.parametrize("coding", ["delta", "ltrb"])
def test_coding_round_trip(coding: str) -> None:
    torch.manual_seed(0)
    anchors = torch.stack((torch.rand(500), 0.05 + torch.rand(500)), dim=-1)
    # ltrb can only say spans around the anchor's centre.
    reach = 0.02 + torch.rand(500, 2)
    ends = torch.stack((anchors[:, 0] - reach[:, 0], anchors[:, 0] + reach[:, 1]), dim=-1)
    spans = torch.stack((ends.mean(1), ends[:, 1] - ends[:, 0]), dim=-1)
    torch.testing.assert_close(
        decode(encode(spans, anchors, coding), anchors, coding), spans, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(decode(torch.zeros(500, 2), anchors, coding), anchors)


def test_coding_by_hand() -> None:
    anchor = torch.tensor([0.5, 0.4])
    # Centre .5 + .1 * 2 * .4; width .4 * e^(.2 * 5).
    found = decode(torch.tensor([2.0, 5.0]), anchor, "delta")
    assert found.tolist() == pytest.approx([0.58, 0.4 * math.e])
    # Start .5 - .2 e, end .5 + .2 / e.
    centre, width = decode(torch.tensor([5.0, -5.0]), anchor, "ltrb").tolist()
    assert centre == pytest.approx(0.5 + 0.1 * (1 / math.e - math.e))
    assert width == pytest.approx(0.2 * (1 / math.e + math.e))


@pytest.mark.parametrize("coding", ["delta", "ltrb"])
def test_widths_stay_positive_and_bounded(coding: str) -> None:
    extreme = torch.tensor([[-1e4, -1e4], [1e4, 1e4]])
    anchors = torch.tensor([0.5, 0.4])
    widths = decode(extreme, anchors, coding)[:, 1].tolist()
    assert widths == pytest.approx([0.4 * math.exp(-4), 0.4 * math.exp(4)], rel=1e-4)
    assert all(low < high for low, high in pairwise(widths))
    outside = encode(torch.tensor([0.9, 0.01]), anchors, coding)
    assert bool(outside.isfinite().all())
