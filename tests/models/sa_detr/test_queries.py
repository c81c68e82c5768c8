"""First spans, noise queries and their groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.losses import negatives
from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sa_detr import model as sa_detr_model
from mrmodel.models.sa_detr.model import Encoded
from mrmodel.models.sa_detr.queries import (
    DirectQueries,
    Noise,
    draw_noise,
    even_spans,
    noise_queries,
    noise_sizes,
)
from mrmodel.models.sa_detr.settings import InitSettings, NoiseSettings
from mrmodel.spans import aligned_iou, cxw_to_xx
from tests.conformance.test_models import evaluate, make_batch, make_targets
from tests.models.sa_detr.whole import RefinerInput, finder_of, small_model
from tests.models.small import train_pass


def windows_of(samples: list[list[tuple[float, float]]]) -> PaddedWindows:
    longest = max(map(len, samples))
    spans = torch.full((len(samples), longest, 2), 0.5)
    valid = torch.zeros(len(samples), longest, dtype=torch.bool)
    for b, own in enumerate(samples):
        for i, span in enumerate(own):
            spans[b, i], valid[b, i] = torch.tensor(span), True
    return PaddedWindows(spans, valid)


def draws(shape: tuple[int, int, int], longest: int = 1, seed: int = 0) -> Noise:
    return draw_noise(shape, longest, torch.Generator().manual_seed(seed))


def noise_of(signed: list[list[list[float]]]) -> Noise:
    """Signed sizes: window by window, near then far copy, centre then width; B = groups = 1."""
    values = torch.tensor(signed)[:, None, None]
    return Noise(values.abs(), torch.where(values < 0, -1.0, 1.0))


def queries_of(
    windows: PaddedWindows, noise: Noise, clips: float = 1e4, delta: float = 0.4, **changes: Any
) -> LabelledQueries:
    count = torch.full((len(windows.valid),), clips)
    return noise_queries(windows, count, noise, NoiseSettings(**changes), delta)


def test_copies_by_hand() -> None:
    # Window (0.5, 0.4), sigma_p 0.2, delta 0.4.
    #   near, r = 0.2 * (0.5, -0.5) = (0.1, -0.1): c = 0.5 + 0.1 * 0.4 / 2 = 0.52, w = 0.36.
    #   far, r = 0.2 + 0.4 * (0.25, 0.5) = (0.3, 0.4), signs -, +: c = 0.44, w = 0.56.
    windows, noise = windows_of([[(0.5, 0.4)]]), noise_of([[[0.5, -0.5], [-0.25, 0.5]]])
    found = queries_of(windows, noise)
    torch.testing.assert_close(found.spans_cxw, torch.tensor([[[0.52, 0.36], [0.44, 0.56]]]))
    assert found.positive.tolist() == [[True, False]]
    assert found.used.all()
    # Without band the far copy has r = 0.6 * (0.25, 0.5) = (0.15, 0.3): c = 0.47, w = 0.52.
    found = queries_of(windows, noise, band=False)
    torch.testing.assert_close(found.spans_cxw[0, 1], torch.tensor([0.47, 0.52]))
    # A shift relative to the centre: near c = 0.5 + 0.1 * 0.5 / 2, far c = 0.5 - 0.3 * 0.5 / 2.
    found = queries_of(windows, noise, center_ref="center")
    torch.testing.assert_close(found.spans_cxw[0, :, 0], torch.tensor([0.525, 0.425]))


def test_copies_at_the_ends_of_the_video_by_hand() -> None:
    # Window (0.9, 1): far copy, r = (0.6, 0.6), both +: c = 0.98, w = 0.16,
    # (0.9, 1.06) -> (0.9, 1).
    # Window (0, 0.02) of 10 clips: a copy narrower than half a clip becomes 0.05 wide, inside.
    windows = windows_of([[(0.95, 0.1), (0.01, 0.02)]])
    noise = noise_of([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = queries_of(windows, noise, clips=10.0)
    expected = [[0.95, 0.1], [0.025, 0.05], [0.95, 0.1], [0.025, 0.05]]
    torch.testing.assert_close(found.spans_cxw, torch.tensor([expected]))
    assert found.window.tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("delta", [0.4, 0.1])
@pytest.mark.parametrize("band", [True, False])
def test_bounds_of_the_noise(band: bool, delta: float) -> None:
    settings, noise = NoiseSettings(band=band), draws((1, 2000, 2))
    sizes = noise_sizes(noise, settings, delta)[0, 0]
    near, far = sizes[:, 0], sizes[:, 1]
    assert 0.0 <= float(near.min()) < 0.01
    assert 0.19 < float(near.max()) <= 0.2
    assert 0.2 + delta - 0.01 < float(far.max()) <= 0.2 + delta
    assert (float(far.min()) >= float(near.max())) == band
    # Inside of the video nothing is cut: the moves themselves are as large as the shares say.
    window = torch.tensor([0.5, 0.2])
    spans = queries_of(windows_of([[(0.5, 0.2)]]), noise, delta=delta, band=band).spans_cxw[0]
    moved = (spans - window).abs() / torch.tensor([0.1, 0.2])
    expected = sizes.flatten(0, 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_how_good_the_copies_are() -> None:
    """Mean IoU with the window: near .88, far .63, far without band .67 (to .02)."""
    window = windows_of([[(0.5, 0.2)]])
    true = cxw_to_xx(torch.tensor([0.5, 0.2]))
    means = []
    for band in (True, False):
        found = queries_of(window, draws((1, 4000, 2)), band=band)
        iou = aligned_iou(cxw_to_xx(found.spans_cxw[0]), true)
        means += [float(iou[found.positive[0]].mean()), float(iou[~found.positive[0]].mean())]
    assert means == pytest.approx([0.88, 0.63, 0.88, 0.67], abs=0.02)


def test_copies_are_valid_spans() -> None:
    windows = windows_of([[(0.5, 0.4), (0.02, 0.04)], [(0.97, 0.05)], [(0.5, 1.0), (0.3, 1e-4)]])
    found = queries_of(windows, draws((3, 200, 2), 2), clips=40.0, center_ref="center")
    ends = cxw_to_xx(found.spans_cxw)
    assert ends.min() >= -1e-6
    assert ends.max() <= 1 + 1e-6
    assert found.spans_cxw[..., 1][found.used].min() >= 0.5 / 40 - 1e-7


def test_without_negatives_all_copies_are_near() -> None:
    found = queries_of(windows_of([[(0.5, 0.2)]]), draws((1, 50, 1)))
    assert found.positive.all()
    assert ((found.spans_cxw[..., 0] - 0.5).abs() <= 0.2 * 0.1 + 1e-6).all()


def noise_spans(model: Any, progress: float = 0.0) -> Tensor:
    batch = make_batch()
    seen = RefinerInput(model)
    _, parts = train_pass(model, batch, make_targets(batch, (1, 1, 1)), progress=progress)
    assert parts.noise_queries is not None
    assert torch.equal(seen.queries.spans_cxw[:, :-4], parts.noise_queries.spans_cxw)
    return parts.noise_queries.spans_cxw


def test_curriculum_brings_the_far_copies_nearer() -> None:
    fixed, model = small_model(), small_model(dn={"mode": "curriculum"})
    early, late = noise_spans(model), noise_spans(model, progress=1.0)
    assert torch.equal(early, noise_spans(fixed))
    assert torch.equal(early, noise_spans(fixed, progress=1.0))
    # Slots of a group: the near copy, the far copy.
    assert torch.equal(early[:, 0::2], late[:, 0::2])
    assert not torch.equal(early[:, 1::2], late[:, 1::2])


def test_fuller_batch_mate_changes_no_copy() -> None:
    model, batch = small_model(), make_batch()
    found = []
    for counts in ((1, 1, 1), (1, 1, 3)):
        targets = make_targets(batch, counts)
        targets.spans_cxw[:2] = torch.tensor([[0.3, 0.2], [0.6, 0.4]])
        output, parts = train_pass(model, batch, targets)
        assert parts.noise_queries is not None
        assert parts.noise is not None
        used = parts.noise_queries.used[:2]
        found.append((output.scores[:2], parts.noise_queries.spans_cxw[:2][used],
                      parts.noise.spans_cxw[:, :2][:, used]))  # fmt: skip
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_answering_draws_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise queries, no negative sentences: neither is made, nor walks through the encoder."""
    calls: list[str] = []
    places = ((sa_detr_model, "noise_queries"), (negatives, "negative_rows"))

    def counted(name: str, original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return original(*arguments)

        return call

    for module, name in places:
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    model, batch = small_model(), make_batch()
    sizes: list[int] = []
    model.encoder.layers[0].register_forward_pre_hook(lambda _, rows: sizes.append(len(rows[0])))
    targets = make_targets(batch)
    train_pass(model, batch, targets)
    assert sorted(calls) == ["negative_rows", "noise_queries"]
    calls.clear()
    with torch.no_grad():
        output = model.eval()(batch, targets)
    assert calls == []
    assert sizes == [6, 3]
    assert output.training is None


def test_first_spans_are_distinct_and_even() -> None:
    torch.manual_seed(0)
    direct = DirectQueries(16, InitSettings(queries=5))
    content, spans = direct(torch.randn(3, 16))
    assert content.shape == (3, 5, 16)
    assert not content.any()
    assert spans.min() > 0
    assert spans.max() < 1
    torch.testing.assert_close(spans, even_spans(5).expand(3, -1, -1), rtol=0, atol=0.03)
    assert even_spans(5)[:, 0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert not torch.equal(spans[0], spans[1])  # of the video, not of the query alone


def test_learned_first_spans_are_the_same_for_every_video() -> None:
    direct = DirectQueries(16, InitSettings(anchors="learned", queries=5))
    _, spans = direct(torch.randn(3, 16))
    torch.testing.assert_close(spans, even_spans(5).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("init", "taught"), [({}, False), ({"detach_ref": False}, True), ({"loss": False}, True)]
)
def test_who_teaches_the_first_spans(init: dict[str, Any], taught: bool) -> None:
    """The first loss reaches the fusion token; losses after the refiner only if not detached."""
    model, batch = small_model(init=init), make_batch()
    _, parts = train_pass(model, batch, make_targets(batch))
    assert parts.first_spans is not None
    assert parts.direct is not None
    spans = finder_of(model).direct.spans
    first = torch.autograd.grad(parts.first_spans.sum(), model.token, retain_graph=True)
    assert first[0].any()
    total = parts.direct.spans_cxw.sum() + parts.direct.quality_logits.sum()
    later = torch.autograd.grad(total, list(spans.parameters()), allow_unused=True)
    assert all((g is not None and bool(g.any())) == taught for g in later)


def test_local_block_leaves_the_token_alone_unless_wanted() -> None:
    """By default a clip does not change when the token alone does."""
    for include, same in ((False, True), (True, False)):
        finder = finder_of(small_model(local={"include_token": include}))
        found = []
        for shift in (0.0, 1.0):
            generator = torch.Generator().manual_seed(0)
            token, clips = (torch.randn(*s, generator=generator) for s in ((1, 16), (1, 6, 16)))
            encoded = _encoded(token + shift, clips)
            found.append(finder._look_closer(encoded)[1])
        assert torch.equal(found[0][:, 0], found[1][:, 0]) == same
        assert torch.equal(found[0][:, 1:], found[1][:, 1:])


@pytest.mark.parametrize("source", ["global", "fused"])
@pytest.mark.parametrize("include", [True, False])
def test_what_the_local_block_reads(source: str, include: bool) -> None:
    finder = finder_of(small_model(local={"input": source, "include_token": include}))
    encoded = _encoded(torch.randn(1, 16), torch.randn(1, 6, 16))
    first = finder._look_closer(encoded)
    unread = {"global": "fused", "fused": "mixed"}[source]
    changed = replace(encoded, **{unread: encoded.mixed + 1.0})
    for one, other in zip(first, finder._look_closer(changed), strict=True):
        assert torch.equal(one, other)


def _encoded(token: Tensor, clips: Tensor) -> Encoded:
    sequence = torch.cat((token[:, None], clips), dim=1)
    mask = torch.ones(1, sequence.shape[1], dtype=torch.bool)
    return Encoded(sequence, sequence, mask, torch.zeros_like(clips), None)


def test_ranks_are_of_the_quality_alone() -> None:
    model, batch = small_model(), make_batch()
    output = evaluate(model, batch)
    assert torch.equal(output.scores, output.last.logits.squeeze(-1).sigmoid())
    assert torch.equal(output.spans_cxw, output.last.spans_cxw)
    with torch.no_grad():
        refiner = finder_of(model).refiner
        refiner.quality.weight.mul_(-1.0)
        refiner.quality.bias.mul_(-1.0)
    other = evaluate(model, batch)
    torch.testing.assert_close(other.scores, 1.0 - output.scores)
    assert torch.equal(other.spans_cxw, output.spans_cxw)
