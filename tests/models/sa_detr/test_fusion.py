"""The fusion encoder: one set of weights, two directions; pools of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.sa_detr.model import AttentionPool
from mrmodel.models.sa_detr.settings import SaDetrFusionSettings, SaDetrSettings
from mrmodel.models.sa_detr.shared_fusion import FusionEncoder, Stream
from tests.rounding import rounding

SETTINGS = SaDetrSettings(hidden=16, heads=2, ffn=24, dropout=0.0)
CLIPS, WORDS = torch.tensor([6, 4]), torch.tensor([3, 5])


def encoder(both: bool = True, **fusion: Any) -> FusionEncoder:
    torch.manual_seed(0)
    return FusionEncoder(SETTINGS, SaDetrFusionSettings(**fusion), 2, both).eval()


def streams(coded: bool = True) -> tuple[Stream, Stream]:
    generator = torch.Generator().manual_seed(1)
    video, text, position = (torch.randn(2, n, 16, generator=generator) for n in (7, 5, 7))
    position[:, 0] = 0.0
    clip_mask = torch.arange(7) < CLIPS[:, None] + 1
    return (
        Stream(video, position if coded else torch.zeros_like(position), clip_mask),
        Stream(text, None, torch.arange(5) < WORDS[:, None]),
    )


UPDATES = ["independent", "parallel"]


def test_both_directions_have_the_same_parameters() -> None:
    names = [name for name, _ in encoder().named_parameters()]
    assert all(name.startswith("layers.") for name in names)
    assert sum(p.numel() for p in encoder(share=False).parameters()) == 2 * sum(
        p.numel() for p in encoder().parameters()
    )


@pytest.mark.parametrize("update", UPDATES)
def test_one_weight_changes_both_outputs(update: str) -> None:
    model = encoder(update=update)
    first = model(*streams(), None)
    with torch.no_grad():
        model.layers[1].ffn.expand.weight[0, 0] += 5.0  # type: ignore[union-attr]
    second = model(*streams(), None)
    for one, other in zip(first, second, strict=True):
        assert not torch.allclose(one, other, atol=1e-4)


def test_without_sharing_each_direction_has_its_own() -> None:
    model = encoder(share=False)
    video, words = model(*streams(), None)
    with torch.no_grad():
        model.word_layers[1].ffn.expand.weight[0, 0] += 5.0  # type: ignore[union-attr]
    other_video, other_words = model(*streams(), None)
    assert torch.equal(video, other_video)
    assert not torch.allclose(words, other_words, atol=1e-4)


def test_order_of_words_moves_the_words_and_nothing_else() -> None:
    model, (clips, words) = encoder(), streams()
    order = torch.tensor([2, 0, 1, 3, 4])
    video, text = model(clips, words, None)
    moved = Stream(words.state[:, order], None, words.mask)
    other_video, other_text = model(clips, moved, None)
    torch.testing.assert_close(other_video, video, rtol=0, atol=1e-5)
    torch.testing.assert_close(other_text, text[:, order], rtol=0, atol=1e-5)


def test_positions_go_into_the_queries_of_the_clips_only() -> None:
    model = encoder()
    video, text = model(*streams(), None)
    other_video, other_text = model(*streams(coded=False), None)
    assert torch.equal(text, other_text)
    assert not torch.allclose(video[:, 1:], other_video[:, 1:], atol=1e-4)
    assert torch.equal(video[:, 0], other_video[:, 0])  # the token's code is zero


@pytest.mark.parametrize("update", UPDATES)
def test_positions_of_words_go_into_what_the_clips_read_and_into_what_the_words_ask(
    update: str,
) -> None:
    model, (clips, words) = encoder(update=update), streams()
    coded = words._replace(position=torch.randn(2, 5, 16))
    first, second = model(clips, words, None), model(clips, coded, None)
    for one, other in zip(first, second, strict=True):
        assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kept", [True, False])
def test_words_read_the_token_if_wanted(update: str, kept: bool) -> None:
    model, (clips, words) = encoder(update=update, keys_include_token=kept), streams()
    moved = clips._replace(state=clips.state.clone())
    moved.state[:, 0] += 1.0
    _, text = model(clips, words, None)
    _, other = model(moved, words, None)
    assert torch.equal(text, other) != kept


@pytest.mark.parametrize("update", UPDATES)
def test_negative_half_is_the_clips_under_the_other_sentence(update: str) -> None:
    model, (clips, words) = encoder(update=update), streams()
    negative = torch.tensor([1, 0])
    exchanged = Stream(words.state[negative], None, words.mask[negative])
    video, text = model(clips, words, negative)
    own, own_text = model(clips, words, None)
    other, _ = model(clips, exchanged, None)
    torch.testing.assert_close(video[:2], own, rtol=0, atol=1e-5)
    torch.testing.assert_close(video[2:], other, rtol=0, atol=1e-5)
    torch.testing.assert_close(text, own_text, rtol=0, atol=1e-5)


def test_parallel_layers_read_what_the_layer_before_made() -> None:
    """The first layers agree; the second one of `parallel` reads its output."""
    model, parallel = encoder(), encoder(update="parallel")
    (video, text), (other_video, other_text) = (m(*streams(), None) for m in (model, parallel))
    assert not torch.allclose(video, other_video, atol=1e-4)
    assert not torch.allclose(text, other_text, atol=1e-4)
    for m in (model, parallel):
        del m.layers[1]
        m.word_rounds = 1
    for one, other in zip(model(*streams(), None), parallel(*streams(), None), strict=True):
        # Up to 24 terms a sum, four sums in a row, values below 4.
        torch.testing.assert_close(one, other, rtol=0, atol=rounding(24, 4.0, stages=4))


def test_words_stay_away_where_nobody_reads_them() -> None:
    model = encoder(both=False)
    video, text = model(*streams(), None)
    assert text is None
    assert torch.equal(video, encoder()(*streams(), None)[0])


def test_fused_layers_compute_what_the_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training without dropout, against the plain modules."""
    results: list[list[Tensor]] = []
    for is_fused in (True, False):
        model = encoder().train()
        if not is_fused:
            monkeypatch.setattr("mrmodel.models.layers.cpu_kernels.usable", lambda *_, **__: False)
        video, text = model(*streams(), torch.tensor([1, 0]))
        (video.square().sum() + text.sum()).backward()
        results.append([video, text, *(_gradient(p) for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_pool_by_hand() -> None:
    """Scores 0 and log 3 weigh the rows with 1/4 and 3/4; the third row is padding."""
    pool = AttentionPool(2)
    with torch.no_grad():
        pool.direction.copy_(torch.tensor([0.0, 1.0]))
    rows = torch.tensor([[[4.0, 0.0], [8.0, 1.0986123], [99.0, 99.0]]])
    found = pool(rows, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found, torch.tensor([[7.0, 0.75 * 1.0986123]]))


def test_pool_of_one_word_is_the_word() -> None:
    rows = torch.randn(3, 4, 8)
    mask = torch.arange(4) < 1
    torch.testing.assert_close(AttentionPool(8)(rows, mask.expand(3, -1)), rows[:, 0])
