"""Denoising queries: arithmetic by hand, bounds of the noise, and independence of batch mates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.query_groups import LabelledQueries, Noise, draw_noise
from mrmodel.models.sg_detr.queries import KINDS, denoising_groups, denoising_queries
from mrmodel.models.sg_detr.settings import DenoisingSettings
from mrmodel.spans import aligned_iou, cxw_to_xx
from tests.conformance.test_models import SAME_ANSWERS, make_batch, make_targets
from tests.models.sg_detr.whole import DecoderInput, detector_of, small_model
from tests.models.small import train_pass


def windows_of(samples: list[list[tuple[float, float]]]) -> PaddedWindows:
    longest = max(map(len, samples))
    spans = torch.full((len(samples), longest, 2), 0.5)
    valid = torch.zeros(len(samples), longest, dtype=torch.bool)
    for b, own in enumerate(samples):
        for i, span in enumerate(own):
            spans[b, i], valid[b, i] = torch.tensor(span), True
    return PaddedWindows(spans, valid, int(valid.sum()))


def noisy(
    windows: PaddedWindows, groups: int, scale: float, clips: float = 1e4, seed: int = 0
) -> tuple[LabelledQueries, Noise]:
    samples, longest = windows.valid.shape
    noise = draw_noise((samples, groups, KINDS), longest, torch.Generator().manual_seed(seed))
    return denoising_queries(windows, torch.full((samples,), clips), noise, scale), noise


def noise_of(draws: list[list[list[float]]]) -> Noise:
    """Signed sizes, window by window, positive then negative, start then end; B = groups = 1."""
    signed = torch.tensor(draws)[:, None, None]
    return Noise(signed.abs(), torch.where(signed < 0, -1.0, 1.0))


def test_queries_by_hand() -> None:
    # lambda = 0.5, 10 clips: a reference is at least 0.05 wide. First window (0.3, 0.7), the unit
    # of noise is 0.5 * 0.4 / 2 = 0.1:
    #   positive +0.5, -0.25: (0.35, 0.675);  negative -(1 + 0.5), +(1 + 0): (0.15, 0.8).
    # Second window (0, 0.2), unit 0.05:
    #   positive -0.5, +0.2: (-0.025 -> 0, 0.21);  negative +(1 + 0.8), -(1 + 0.4): (0.09, 0.13),
    #   0.04 wide -> 0.05 around 0.11.
    windows = windows_of([[(0.5, 0.4), (0.1, 0.2)]])
    noise = noise_of([[[0.5, -0.25], [-0.5, 0.0]], [[-0.5, 0.2], [0.8, -0.4]]])
    queries = denoising_queries(windows, torch.tensor([10]), noise, 0.5)
    expected = [[0.5125, 0.325], [0.105, 0.21], [0.475, 0.65], [0.11, 0.05]]
    torch.testing.assert_close(queries.spans_cxw, torch.tensor([expected]))
    assert queries.window.tolist() == [[0, 1, 0, 1]]
    assert queries.positive.tolist() == [[True, True, False, False]]
    assert queries.used.all()


def test_exchanged_and_coinciding_ends_by_hand() -> None:
    # lambda = 1, window (0.4, 0.6), unit 0.1. Negative +1.5, -1.5: (0.55, 0.45), sorted
    # (0.45, 0.55). Positive +1, -1 (the limit of the noise): both ends at 0.5, 0 wide ->
    # 1 / 20. At the end of the video, window (0.9, 1), unit 0.05: positive +1, +0.99: (0.95, 1);
    # negative +2, +1: (1, 1) -> 0.05 wide, moved inside: (0.95, 1).
    windows = windows_of([[(0.5, 0.2), (0.95, 0.1)]])
    noise = noise_of([[[1.0, -1.0], [0.5, -0.5]], [[1.0, 0.99], [1.0, 0.0]]])
    queries = denoising_queries(windows, torch.tensor([10]), noise, 1.0)
    expected = [[0.5, 0.05], [0.975, 0.05], [0.5, 0.1], [0.975, 0.05]]
    torch.testing.assert_close(queries.spans_cxw, torch.tensor([expected]))


def test_reference_of_a_single_clip_stays_inside() -> None:
    queries, _ = noisy(windows_of([[(0.5, 1.0), (0.1, 0.01)]]), 50, 2.0, clips=1.0)
    ends = cxw_to_xx(queries.spans_cxw)
    assert ends.min() >= -1e-6
    assert ends.max() <= 1 + 1e-6
    assert queries.spans_cxw[..., 1].min() >= 0.5


@pytest.mark.parametrize("scale", [0.2, 0.4, 1.0, 2.0])
def test_references_are_ordered_and_inside(scale: float) -> None:
    windows = windows_of([[(0.5, 0.4), (0.02, 0.04)], [(0.97, 0.05)], [(0.5, 1.0), (0.3, 1e-4)]])
    queries, _ = noisy(windows, 200, scale, clips=40.0)
    ends = cxw_to_xx(queries.spans_cxw)
    assert ends.min() >= -1e-6
    assert ends.max() <= 1 + 1e-6
    widths = queries.spans_cxw[..., 1]
    assert widths[queries.used].min() >= 0.5 / 40 - 1e-7


@pytest.mark.parametrize("scale", [0.2, 0.4])
def test_distance_of_each_end(scale: float) -> None:
    """Before the ends meet the borders of the video, so that the draws can be read off."""
    windows = windows_of([[(0.5, 0.4), (0.6, 0.2)]])
    queries, _ = noisy(windows, 1000, scale)
    true = windows.spans_cxw[0, queries.window[0]]
    distance = (cxw_to_xx(queries.spans_cxw[0]) - cxw_to_xx(true)).abs()
    unit = (scale * true[:, 1] / 2)[:, None]
    near, far = (distance / unit)[queries.positive[0]], (distance / unit)[~queries.positive[0]]
    assert near.max() <= 1 + 1e-4
    assert far.min() >= 1 - 1e-4
    assert far.max() <= 2 + 1e-4
    # Uniform on [0, 1) and [1, 2), ends on their own: 4000 draws each.
    assert float(near.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(far.mean()) == pytest.approx(1.5, abs=0.02)
    assert abs(float(torch.corrcoef(far.t())[0, 1])) < 0.06


@pytest.mark.parametrize(
    ("scale", "near", "far"),
    [(0.2, 0.91, 0.74), (0.4, 0.82, 0.54), (0.6, 0.75, 0.37), (1.0, 0.61, 0.30)],
)
def test_mean_overlap_with_the_truth(scale: float, near: float, far: float) -> None:
    """The means measured for section 4.3, of a window that is far from the borders.

    There 0.32 is given for the last one. In units of the width, with u and v from [0, 1): both
    ends inwards, which exchanges them, overlap by (u + v) / 2, 0.5 on average; both outwards by
    1 / (2 + (u + v) / 2), 0.40; one of each by (1 - u) / (3 + v), 0.14. A quarter, a quarter and
    a half of them make 0.30; clamping at a border adds to that.
    """
    queries, _ = noisy(windows_of([[(0.5, 0.2)]]), 10000, scale)
    overlap = aligned_iou(cxw_to_xx(queries.spans_cxw[0]), cxw_to_xx(torch.tensor([0.5, 0.2])))
    positive = queries.positive[0]
    assert float(overlap[positive].mean()) == pytest.approx(near, abs=0.015)
    assert float(overlap[~positive].mean()) == pytest.approx(far, abs=0.015)


def test_slots_tell_their_window() -> None:
    """Group by group, positives before negatives; a slot without window is empty."""
    queries, _ = noisy(windows_of([[(0.3, 0.2)], [(0.4, 0.2), (0.5, 0.1), (0.6, 0.2)]]), 2, 0.4)
    yes, no = [True, False, False], [False] * 3
    assert queries.used.tolist() == [yes * 4, [True] * 12]
    assert queries.window.tolist() == [[0] * 12, [0, 1, 2] * 4]
    positive = ([True] * 3 + no) * 2
    assert queries.positive.tolist() == [(yes + no) * 2, positive]
    empty = queries.spans_cxw[~queries.used]
    assert torch.equal(empty, torch.full_like(empty, 0.5))


def test_same_seed_same_draws() -> None:
    windows = windows_of([[(0.3, 0.2), (0.7, 0.1)]])
    first, second, other = (noisy(windows, 5, 0.4, seed=seed)[0].spans_cxw for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    groups = first.view(1, 5, 4, 2)
    assert not torch.equal(groups[:, 0], groups[:, 1])


@pytest.mark.parametrize(
    ("mode", "longest", "groups"),
    [("fixed", 3, 5), ("dynamic", 1, 50), ("dynamic", 3, 16), ("dynamic", 60, 1)],
)
def test_number_of_groups(mode: str, longest: int, groups: int) -> None:
    settings = DenoisingSettings.model_validate({"group_mode": mode})
    assert denoising_groups(settings, longest) == groups


def test_groups_of_the_whole_model() -> None:
    model = small_model(dn={"group_mode": "dynamic", "number": 30})
    batch = make_batch()
    parts = train_pass(model, batch, make_targets(batch, (2, 1, 3)))[1]
    assert parts.dn_queries is not None
    assert parts.dn_queries.used.shape == (3, 5 * 2 * 3)  # 30 // (2 * 3) groups


def own_slots(rows: Tensor, groups: int, longest: int, kept: int) -> Tensor:
    """(..., S) or (..., S, 2) at sample 1: the slots of its first `kept` windows, in order."""
    return rows.unflatten(-1, (groups, 2, longest))[..., :kept]


def test_fuller_batch_mate_changes_no_denoising_query_nor_output() -> None:
    """Sample 1 has one window in both batches; sample 0 has two, then five."""
    batch, model = make_batch(), small_model()
    found = []
    for count in (2, 5):
        targets = make_targets(batch, (count, 1, 0))
        targets.spans_cxw[count] = torch.tensor([0.4, 0.3])
        _, parts = train_pass(model, batch, targets)
        assert parts.dn is not None
        assert parts.dn_queries is not None
        assert parts.dn.iou_logits is not None
        rows = [
            parts.dn_queries.spans_cxw[1].t(),
            parts.dn.logits[:, 1],
            parts.dn.iou_logits[:, 1],
            parts.dn.spans_cxw[:, 1].transpose(1, 2),
        ]
        found.append([own_slots(part, 2, count, 1) for part in rows])
    (references, *outputs), (more_references, *more_outputs) = found
    assert torch.equal(references, more_references)
    for output, more in zip(outputs, more_outputs, strict=True):
        torch.testing.assert_close(output, more, **SAME_ANSWERS)


@pytest.mark.parametrize("content", ["shared", "pos_neg"])
def test_content_of_the_slots(content: str) -> None:
    model, batch = small_model(dn={"content": content}), make_batch()
    seen = DecoderInput(model)
    _, parts = train_pass(model, batch, make_targets(batch, (2, 1, 3)))
    queries, vectors = parts.dn_queries, detector_of(model).foreground
    assert queries is not None
    assert vectors is not None
    assert len(vectors) == (2 if content == "pos_neg" else 1)
    slots = queries.used.shape[1]
    given, spans = (part[:, :slots] for part in seen.queries)
    assert torch.equal(spans, queries.spans_cxw)
    negative = queries.used & ~queries.positive
    assert torch.equal(given[queries.positive], vectors[0].expand_as(given[queries.positive]))
    assert torch.equal(given[negative], vectors[-1].expand_as(given[negative]))
    assert given[~queries.used].abs().sum() == 0


def test_no_window_no_denoising() -> None:
    batch, model = make_batch(), small_model()
    _, parts = train_pass(model, batch, make_targets(batch, (0, 0, 0)))
    assert parts.dn is None
    assert parts.dn_queries is None
