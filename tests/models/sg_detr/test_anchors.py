"""Anchors and their assignment: by hand, against a plain loop, and their statistics."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from mrmodel.models.sg_detr.anchors import (
    CENTRE_WEIGHT,
    EXTRA,
    MAX_LOG_WIDTH,
    WIDTH_WEIGHT,
    AnchorGrid,
    AnchorTargets,
    assign,
    level_masks,
)
from mrmodel.spans import cxw_to_xx
from tests.models.sg_detr.whole import close, mask_of

Windows = list[tuple[float, float]]
WINDOW = (0.2, 2.8)


def grid_of(clips: int) -> AnchorGrid:
    return AnchorGrid.of(clips, torch.device("cpu"))


def assigned(clips: int, windows: Windows, topk: int = 12) -> AnchorTargets:
    """The anchors of one sample."""
    grid = grid_of(clips)
    exists = torch.ones(1, len(grid.centre), dtype=torch.bool)
    valid = torch.ones(1, len(windows), dtype=torch.bool)
    return assign(grid, exists, torch.tensor([windows]), valid, topk)


def owners(found: AnchorTargets, sample: int = 0) -> dict[int, int]:
    """Window of each positive anchor."""
    return {i: w for i, w in enumerate(found.window[sample].tolist()) if w >= 0}


def overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    shared = max(0.0, min(end, other_end) - max(start, other_start))
    return shared / (end - start + other_end - other_start - shared)


def test_anchors_of_five_clips() -> None:
    grid = grid_of(5)
    assert grid.level_sizes == (10, 5, 3, 2)
    level = [0.5, 1.5, 2.5, 3.5, 4.5]
    assert grid.centre.tolist() == [0.25 + 0.5 * i for i in range(10)] + [*level, 1, 3, 5, 2, 6]
    # Anchors are one narrower than the regression counts.
    assert grid.width[[0, 10, 15, 18]].tolist() == [3, 15, 31, 63]
    assert grid.spans_xx[[0, 18]].tolist() == [[-1.25, 1.75], [-29.5, 33.5]]


def encode(spans_cxw: Tensor, grid: AnchorGrid) -> Tensor:
    """Regression outputs that `decode` turns into these spans."""
    shift = CENTRE_WEIGHT * (spans_cxw[..., 0] - grid.centre) / grid.size
    growth = WIDTH_WEIGHT * ((spans_cxw[..., 1] + EXTRA) / grid.size).log()
    return torch.stack((shift, growth), dim=-1)


def test_decoding_undoes_the_encoding() -> None:
    grid = grid_of(7)
    count = len(grid.centre)
    close(cxw_to_xx(grid.decode(torch.zeros(1, count, 2))), grid.spans_xx[None])
    spans = torch.stack((7.0 * torch.rand(1, count), 0.1 + 7.0 * torch.rand(1, count)), -1)
    close(grid.decode(encode(spans, grid)), spans, 1e-4)
    # At most e^MAX_LOG_WIDTH times as wide; below zero by `EXTRA` at the least.
    widths = grid.decode(torch.tensor([1e4, -1e4])[:, None, None].expand(2, count, 2))[:, 0, 1]
    expected = [math.exp(MAX_LOG_WIDTH) * 4.0 - EXTRA, -EXTRA]
    assert widths.tolist() == pytest.approx(expected, rel=1e-5)


def test_equally_near_anchors_are_taken_from_the_front() -> None:
    # Centre 2: the levels have 1.75 and 2.25, 1.5 and 2.5, 1 and 3, 2. With the earlier ones the
    # IoUs are 2/3, 2/15, 2/31, 2/63, their mean .224, deviation .298.
    assert owners(assigned(4, [(1.0, 3.0)], topk=1)) == {3: 0}


def test_threshold_by_hand() -> None:
    # Nearest to 1.125 are anchors of widths 3, 15, 31, 63 at 1.25, 1.5, 1, 2. Their IoUs are 1.25
    # over the width, their mean .140, deviation .186; 1.25/3 reaches that. The centre of this
    # anchor is .75 and .5 from the ends.
    found = assigned(4, [(0.5, 1.75)], topk=1)
    assert owners(found) == {2: 0}
    assert float(found.centerness[0, 2]) == pytest.approx(0.5 / 0.75)
    assert found.centerness.count_nonzero() == 1


def test_conflicts_go_to_the_larger_iou_then_to_the_earlier_window() -> None:
    larger = (0.1, 3.1)
    shared = owners(assigned(4, [WINDOW])).keys() & owners(assigned(4, [larger])).keys()
    found, ends = owners(assigned(4, [WINDOW, larger])), grid_of(4).spans_xx.tolist()
    for anchor in shared:
        first, second = (overlap(*window, *ends[anchor]) for window in (WINDOW, larger))
        assert found[anchor] == (second > first)
    assert {found[anchor] for anchor in shared} == {0, 1}
    assert set(owners(assigned(4, [WINDOW, WINDOW])).values()) == {0}


@pytest.mark.parametrize("at", [0.5, 1.0, 40.0])
def test_a_window_without_length_has_no_anchor(at: float) -> None:
    """Windows within one second are cut to nothing, maybe at the centre of an anchor."""
    found = assigned(4, [(at, at)])
    assert owners(found) == {}
    assert found.centerness.tolist() == [[0.0] * 15]


def reference(
    grid: AnchorGrid, exists: list[bool], windows: Windows, topk: int
) -> dict[int, tuple[int, float]]:
    """Anchor -> (window, centerness), one step after the other."""
    centres, ends = grid.centre.tolist(), grid.spans_xx.tolist()
    owner: dict[int, int] = {}
    iou = {(w, i): overlap(*x, *y) for w, x in enumerate(windows) for i, y in enumerate(ends)}
    for w, (start, end) in enumerate(windows):
        candidates, first = [], 0
        for size in grid.level_sizes:
            level = [i for i in range(first, first + size) if exists[i]]
            level.sort(key=lambda i: abs(centres[i] - (start + end) / 2))
            candidates += level[:topk]
            first += size
        values = [iou[w, i] for i in candidates]
        least = statistics.fmean(values) + (statistics.stdev(values) if len(values) > 1 else 0.0)
        for i in candidates:
            wanted = iou[w, i] >= least and start < centres[i] < end
            if wanted and (i not in owner or iou[w, i] > iou[owner[i], i]):
                owner[i] = w
    found = {}
    for i, w in owner.items():
        before, after = centres[i] - windows[w][0], windows[w][1] - centres[i]
        found[i] = (w, min(before, after) / max(before, after))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_assignment_equals_a_plain_loop(seed: int) -> None:
    """Samples of one batch, padded, of which six, none and four windows are valid."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [80, 9, 30]
    topk = 1 + 3 * (seed % 5)
    grid = grid_of(max(lengths) + 3)
    exists = torch.cat(level_masks(mask_of(lengths, 3)), dim=1)
    width, start = torch.rand(2, 3, 6, generator=generator)
    start = start * (1 - width**2)
    spans = torch.stack((start, start + width**2), -1) * torch.tensor(lengths)[:, None, None]
    valid = torch.arange(6) < torch.tensor([[6], [0], [4]])
    found = assign(grid, exists, spans, valid, topk)
    for sample, count in enumerate((6, 0, 4)):
        windows = [(a, b) for a, b in spans[sample, :count].tolist()]
        expected = reference(grid, exists[sample].tolist(), windows, topk)
        own = owners(found, sample)
        assert own == {i: w for i, (w, _) in expected.items()}
        for i, centerness in enumerate(found.centerness[sample].tolist()):
            assert centerness == pytest.approx(expected.get(i, (-1, 0.0))[1], abs=1e-6)


def without_anchor(clips: int) -> int:
    """How many of all windows of whole clips have no anchor."""
    pairs = [(a, b) for a in range(clips) for b in range(a + 1, clips + 1)]
    windows, grid = torch.tensor(pairs).float().unsqueeze(1), grid_of(clips)
    exists = (grid.centre < clips).expand(len(windows), -1)
    valid = torch.ones(len(windows), 1, dtype=torch.bool)
    found = assign(grid, exists, windows, valid, 12)
    return int((found.window < 0).all(1).sum())


def test_only_windows_of_short_videos_have_no_anchor() -> None:
    assert without_anchor(75) == without_anchor(76) == 0
    assert sum(without_anchor(clips) for clips in range(4, 21, 4)) == 6
