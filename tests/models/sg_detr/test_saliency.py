"""Clip scores: what they are before training, and the amplifier by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.pooling import masked_mean
from mrmodel.models.sg_detr.pooling import PoolingEncoder
from mrmodel.models.sg_detr.saliency import (
    GlobalSaliency,
    LocalSaliency,
    amplify,
    pairwise_cosine,
)
from mrmodel.models.sg_detr.settings import SgDetrSettings

D = 12


def settings_of(**changes: Any) -> SgDetrSettings:
    return SgDetrSettings(hidden=8, heads=8, ffn=8, dropout=0.0, **changes)


def rows_of(lengths: list[int], seed: int, padding: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), max(lengths), D, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return rows.masked_fill(~mask[..., None], padding), mask


@pytest.mark.parametrize(
    "pool", [{}, {"ffn": False}, {"residual_mean": False}, {"layers": 1}, {"query": "cls"}]
)
def test_first_local_score_is_ten_times_the_cosine_of_mean_token_and_clip(
    pool: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    settings = settings_of(pool=pool)
    (tokens, token_mask), (clips, mask) = rows_of([4, 1, 3], 1, 1e4), rows_of([5, 2, 3], 2)
    sentence = PoolingEncoder(D, settings)(tokens, token_mask)
    scores = LocalSaliency(settings)(sentence, clips, mask)
    for b in range(3):
        own = tokens[b, token_mask[b]]
        start = own[0] + own.mean(0) if "query" in pool else own.mean(0)
        for t in range(5):
            similar = F.cosine_similarity(start, clips[b, t], dim=0)
            expected = 10.0 * float(similar) if mask[b, t] else 0.0
            assert float(scores[b, t].detach()) == pytest.approx(expected, abs=1e-5)


def test_sentence_starts_from_the_learned_vector() -> None:
    pooling = PoolingEncoder(D, settings_of(pool={"query": "learned", "residual_mean": False}))
    tokens, mask = rows_of([3, 2], 3)
    assert pooling.start is not None
    torch.testing.assert_close(pooling(tokens, mask), pooling.start.expand(2, -1))


def test_trained_sentence_reads_all_tokens_and_no_padding() -> None:
    torch.manual_seed(0)
    pooling = PoolingEncoder(D, settings_of())
    for parameter in pooling.parameters():
        nn.init.normal_(parameter, std=0.5)
    tokens, mask = rows_of([4, 2], 4)
    tokens.requires_grad_()
    sentence = pooling(tokens, mask)
    (gradient,) = torch.autograd.grad(sentence.square().sum(), tokens)
    assert torch.equal(gradient.abs().sum(-1) > 0, mask)
    noisy = tokens.detach().masked_fill(~mask[..., None], 1e4)
    torch.testing.assert_close(pooling(noisy, mask), sentence, rtol=0, atol=1e-5)
    alone = pooling(tokens[1:, :2], mask[1:, :2])
    torch.testing.assert_close(alone[0], sentence[1], rtol=0, atol=1e-5)


def test_mean_of_no_rows_is_zero() -> None:
    rows, mask = torch.full((1, 2, 3), 7.0), torch.zeros(1, 2, dtype=torch.bool)
    assert masked_mean(rows, mask).tolist() == [[0.0, 0.0, 0.0]]


def test_cosine_of_zero_rows_is_zero_with_finite_gradient() -> None:
    rows = torch.zeros(2, 3, requires_grad=True)
    similarity = pairwise_cosine(rows[None], torch.ones(1, 1, 3)).flatten()
    similarity.sum().backward()
    assert similarity.tolist() == [0.0, 0.0]
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_pairwise_cosine_is_the_cosine_of_every_pair() -> None:
    (clips, _), (tokens, _) = rows_of([4, 4], 5), rows_of([3, 3], 6)
    expected = F.cosine_similarity(clips[:, :, None], tokens[:, None], dim=-1)
    torch.testing.assert_close(pairwise_cosine(clips, tokens), expected)


def test_amplifier_is_x_times_one_plus_sigmoid() -> None:
    # sigmoid(ln 3) = 3 / 4, sigmoid(0) = 1 / 2
    clips = torch.tensor([[[1.0, -2.0], [4.0, 0.0]]])
    amplified = amplify(clips, torch.tensor([[math.log(3.0), 0.0]]))
    torch.testing.assert_close(amplified, torch.tensor([[[1.75, -3.5], [6.0, 0.0]]]))


def test_first_global_score_is_the_local_one() -> None:
    clips, mask = rows_of([4, 2], 7)
    local = torch.randn(2, 4).masked_fill(~mask, 0.0)
    module = GlobalSaliency(SgDetrSettings(hidden=D, heads=2))
    scores, memory = module(clips, local, mask)
    assert torch.equal(scores, local)
    assert torch.equal(memory, clips * (1 + local.sigmoid()).unsqueeze(-1))


def test_global_score_by_hand() -> None:
    # Local score 0: the amplifier gives 1.5 x. Head w = (1, -1, 0 ..), b = 0.5.
    # Clip (1, 2, 0 ..): change 1.5 - 3 + 0.5 = -1, so the global score is -1 and the detector
    # reads x (1 + sigmoid(-1)). Clip (3, 1, 0 ..): 4.5 - 1.5 + 0.5 = 3.5.
    module = GlobalSaliency(settings_of())
    assert module.head is not None
    with torch.no_grad():
        module.head.weight[0, :2] = torch.tensor([1.0, -1.0])
        module.head.bias.fill_(0.5)
    clips = torch.zeros(1, 3, 8)
    clips[0, :, :2] = torch.tensor([[1.0, 2.0], [3.0, 1.0], [9.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    scores, memory = module(clips, torch.zeros(1, 3), mask)
    torch.testing.assert_close(scores, torch.tensor([[-1.0, 3.5, 0.0]]))
    torch.testing.assert_close(
        memory[0, :2], clips[0, :2] * (1 + torch.tensor([-1.0, 3.5]).sigmoid())[:, None]
    )


def test_global_module_switched_off_changes_nothing() -> None:
    clips, mask = rows_of([4, 2], 8)
    local = torch.randn(2, 4)
    module = GlobalSaliency(settings_of(gsm={"enabled": False}))
    scores, memory = module(clips, local, mask)
    assert scores is local
    assert memory is clips
    assert not list(module.parameters())


@pytest.mark.parametrize("detached", [False, True])
def test_detector_teaches_the_scores_unless_detached(detached: bool) -> None:
    module = GlobalSaliency(SgDetrSettings(hidden=D, heads=2, gsm={"detach_in_mr": detached}))
    clips, mask = rows_of([4, 2], 9)
    local = torch.randn(2, 4, requires_grad=True)
    _, memory = module(clips.requires_grad_(), local, mask)
    (gradient,) = torch.autograd.grad(memory.square().sum(), local, allow_unused=True)
    assert (gradient is None) == detached
