"""What training draws and derives from annotations: slots, negatives, padding, whole seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mrmodel.models.sg_detr.anchors import AnchorGrid
from mrmodel.models.sg_detr.host_inputs import (
    HostInputs,
    existing_anchors,
    make_host_inputs,
    padded_lengths,
    padded_size,
)
from mrmodel.spans import cxw_to_xx
from mrmodel.types import Batch, Targets
from tests.conformance.test_models import make_batch, make_targets, pad_more
from tests.models.sg_detr.whole import close, mask_of, settings_of

RELEASED: dict[str, Any] = {"preset": "released"}
CPU = torch.device("cpu")


def made(
    batch: Batch | None = None, targets: Targets | None = None, seed: int = 0, **changes: Any
) -> HostInputs:
    batch = make_batch() if batch is None else batch
    targets = make_targets(batch) if targets is None else targets
    generator = torch.Generator().manual_seed(seed)
    return make_host_inputs(batch, targets, settings_of(**changes), generator)


def in_seconds(batch: Batch, *windows: tuple[float, float]) -> Targets:
    """One window a sample."""
    rows = torch.tensor(windows) / batch.video_mask.sum(1)[:, None] / batch.clip_len_s
    spans = torch.stack((rows.mean(1), rows[:, 1] - rows[:, 0]), -1)
    return replace(make_targets(batch), spans_cxw=spans, span_counts=[1] * len(rows))


@pytest.mark.parametrize("changes", [{}, RELEASED])
def test_one_seed_one_choice(changes: dict[str, Any]) -> None:
    first, second, other = (made(seed=seed, **changes).as_mapping() for seed in (0, 0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert torch.equal(tensor, other[name]) != (name == "query_anchor"), name
    assert torch.equal(HostInputs.of(first).truth.spans_cxw, first["windows"])


@pytest.mark.parametrize("changes", [{}, RELEASED])
def test_slots_are_the_positives_then_others(changes: dict[str, Any]) -> None:
    host = made(**changes)
    positive = host.anchor_window >= 0
    counts = positive.sum(1).tolist()
    size = max(counts)
    assert min(counts) < size
    assert host.query_anchor.shape == (3, size)
    assert bool(host.query_used.all())  # there are enough other anchors
    for b, count in enumerate(counts):
        slots = host.query_anchor[b].tolist()
        assert slots[:count] == positive[b].nonzero().flatten().tolist()
        assert len(set(slots)) == size
        assert host.query_window[b].tolist() == host.anchor_window[b, slots].tolist()
        assert host.query_window[b, count:].tolist() == [-1] * (size - count)


def test_other_anchors_are_a_random_choice_of_those_that_exist() -> None:
    batch = make_batch(clips=(40, 12, 1), tokens=(4, 4, 4))
    targets = make_targets(batch, (3, 0, 0))
    grid = AnchorGrid.of(40, CPU)
    exists = existing_anchors(batch.video_mask, grid, settings_of())
    chosen: list[set[int]] = [set(), set(), set()]
    for seed in range(60):
        host = made(batch, targets, seed)
        for own, anchors, used in zip(chosen, host.query_anchor, host.query_used, strict=True):
            own |= set(anchors[used].tolist())
    for b in (1, 2):
        assert chosen[b] == set(exists[b].nonzero().flatten().tolist())
    # One clip has four places; the two coarser ones have their centre behind the video.
    assert len(chosen[2]) == 3


def test_padding_changes_no_choice() -> None:
    batch = make_batch()
    short, long = made(batch), made(pad_more(batch, clips=7, tokens=2), make_targets(batch))
    assert torch.equal(short.query_window, long.query_window)
    first, second = (AnchorGrid.of(n, CPU).spans_xx for n in (9, 16))
    assert torch.equal(first[short.query_anchor], second[long.query_anchor])


def test_released_pads_to_a_multiple_of_four() -> None:
    released, robust = settings_of(**RELEASED), settings_of()
    lengths = torch.tensor([1, 4, 5, 75])
    assert padded_lengths(lengths, released).tolist() == [4, 4, 8, 76]
    assert padded_lengths(lengths, robust) is lengths
    assert [padded_size(n, released) for n in (1, 4, 75)] == [4, 4, 76]
    assert padded_size(75, robust) == 75
    own = make_targets(make_batch()).spans_cxw.split([2, 1, 3])  # 9, 5 and 7 clips
    for factors, host in (((9 / 12, 5 / 8, 7 / 8), made(**RELEASED)), ((1.0,) * 3, made())):
        for b, factor in enumerate(factors):
            close(host.windows[b, host.window_valid[b]], own[b] * factor, 1e-7)


def test_anchors_exist_if_their_centre_is_in_the_video() -> None:
    """Odd lengths and padding."""
    mask, grid = mask_of([5, 8, 1], padding=2), AnchorGrid.of(10, CPU)
    found = existing_anchors(mask, grid, settings_of())
    for row, length in zip(found, (5, 8, 1), strict=True):
        assert row.tolist() == [centre < length for centre in grid.centre.tolist()]
    assert bool(existing_anchors(mask, grid, settings_of(legacy_padding=True)).all())


VIDS = ["a_0.0_10.0", "a_10.0_20.0", "b_0.0_10.0"]


@pytest.mark.parametrize(
    ("vids", "texts", "changes", "negative", "has"),
    [
        # The nearest following other video with another sentence.
        (VIDS, "xyz", {}, [2, 2, 0], [True, True, True]),
        (VIDS, "xxx", {}, [0, 1, 2], [False, False, False]),
        # The next sample, if it is of another video.
        (VIDS, "xyz", RELEASED, [1, 2, 0], [False, True, True]),
        (VIDS, "xxx", RELEASED, [1, 2, 0], [False, True, True]),
    ],
)
def test_negative_sentences(
    vids: list[str], texts: str, changes: dict[str, Any], negative: list[int], has: list[bool]
) -> None:
    host = made(replace(make_batch(), vids=vids, text_keys=list(texts)), **changes)
    assert (host.negative.tolist(), host.has_negative.tolist()) == (negative, has)


@pytest.mark.parametrize("changes", [{}, RELEASED, {"auxiliary_queries": False}])
def test_without_windows(changes: dict[str, Any]) -> None:
    host = made(targets=make_targets(make_batch(), (0, 0, 0)), **changes)
    assert host.windows.shape == host.anchor_spans.shape == (3, 1, 2)
    assert not host.window_valid.any()
    assert bool((host.anchor_window == -1).all())
    assert host.query_anchor.shape == (3, 1)
    assert not host.query_used.any()
    assert all(tensor.isfinite().all() for tensor in host.as_mapping().values())


def test_released_cuts_windows_to_whole_seconds_and_counts_two_of_them() -> None:
    batch = replace(make_batch((9, 5), (4, 4)), clip_len_s=1.0)
    targets = in_seconds(batch, (2.75, 7.9), (1.125, 3.0))
    exact = torch.tensor([[2.75, 7.9], [1.125, 3.0]])
    cut = made(batch, targets, **RELEASED)
    close(cut.anchor_spans[:, 0], torch.tensor([[1.0, 3.5], [0.5, 1.5]]))
    # The decoder's truth is not cut; neither are anchors in clips.
    close(cxw_to_xx(cut.windows)[:, 0] * torch.tensor([[12.0], [8.0]]), exact)
    close(made(batch, targets, **RELEASED, legacy_anchor_unit=False).anchor_spans[:, 0], exact)
    # A window within one second is cut to nothing, here at the centre of an anchor.
    batch = make_batch((8, 8), (4, 4))
    host = made(batch, in_seconds(batch, (1.2, 1.9), (4.0, 8.0)), **RELEASED)
    assert host.anchor_spans[0, 0].tolist() == [0.5, 0.5]
    assert host.anchor_centerness.any(1).tolist() == [False, True]
    assert bool(host.anchor_centerness.isfinite().all())
