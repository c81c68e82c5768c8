"""Position codes, attention, masks, heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mrmodel.models.layers.attention import Inputs, MultiheadAttention, attend
from mrmodel.models.layers.functional import key_mask, legacy_tiled_mask, xavier_matrices
from mrmodel.models.layers.heads import SaliencyHead
from mrmodel.models.layers.position import clip_positions, sine_code, span_positions
from mrmodel.models.layers.query_groups import group_mask
from tests.rounding import rounding

# A power and a sine of the same numbers; their last bits depend on the place in a vector.
SAME_CODE = {"rtol": 0.0, "atol": rounding(1, stages=2)}


def test_sine_code_of_the_formula() -> None:
    code = sine_code(torch.tensor([0.3]), 8)[0]
    for i in range(8):
        angle = 2 * math.pi * 0.3 / 10000 ** (2 * (i // 2) / 8)
        expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
        assert float(code[i]) == pytest.approx(expected, abs=1e-6)


def test_clip_positions_ignore_padding() -> None:
    short = clip_positions(torch.ones(1, 4, dtype=torch.bool), 16)
    padded = clip_positions(torch.tensor([[True] * 4 + [False] * 3]), 16)
    torch.testing.assert_close(padded[0, :4], short[0], **SAME_CODE)
    torch.testing.assert_close(padded[0, 6], padded[0, 3], **SAME_CODE)


@pytest.mark.parametrize("hidden", [128, 256])
def test_span_positions_put_the_centre_first(hidden: int) -> None:
    code = span_positions(torch.tensor([[0.2, 0.7]]), hidden)
    assert code.shape == (1, hidden)
    centre, width = (sine_code(torch.tensor(value), hidden // 2) for value in (0.2, 0.7))
    torch.testing.assert_close(code[0], torch.cat((centre, width)), **SAME_CODE)


def test_attention_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4, 0.0), nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {name: t for name, t in ours.state_dict().items() if not name.startswith("dropout")}
    )
    query, memory = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] + [False] * 6])
    residual = torch.randn(3, 5, 16)
    found = ours.eval()(Inputs(query, memory, memory), key_mask(mask), residual, None)
    expected = theirs(query, memory, memory, key_padding_mask=~mask)[0] + residual
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_with_dropout_off_and_on_agree_when_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 8, dtype=torch.float64) for _ in range(3))
    exact = attend(query, key, value, 2, None)
    # float64 on a CPU takes the plain definition; the chance is too small to drop anything.
    torch.testing.assert_close(attend(query, key, value, 2, None, p=1e-9), exact)


def test_key_mask_is_left_out_where_nothing_is_padded() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert key_mask(mask) is None
    mask[1, 2] = False
    allowed = key_mask(mask)
    assert allowed is not None
    assert allowed.shape == (2, 1, 1, 3)


def test_legacy_mask_mixes_samples_up() -> None:
    """Row b * heads + h gets the mask of sample (b * heads + h) mod B."""
    heads = 2
    video_mask = torch.tensor([[True, True], [True, False], [True, True]])
    text_mask = torch.tensor([[True, True], [True, False], [True, True]])
    allowed = legacy_tiled_mask(video_mask, text_mask, heads)
    for b in range(3):
        for h in range(heads):
            other = (b * heads + h) % 3
            for clip in range(2):
                for token in range(2):
                    hidden = not video_mask[other, clip] and not text_mask[other, token]
                    expected = bool(text_mask[b, token]) and not hidden
                    assert bool(allowed[b, h, clip, token]) is expected


def test_saliency_head_is_the_scaled_product() -> None:
    torch.manual_seed(0)
    head = SaliencyHead(16)
    clips, token = torch.randn(2, 5, 16), torch.randn(2, 16)
    expected = (head.clip(clips) * head.token(token)[:, None]).sum(-1) / 4
    torch.testing.assert_close(head(clips, token), expected, rtol=1e-5, atol=1e-6)


def test_xavier_leaves_vectors_alone() -> None:
    linear = nn.Linear(30, 10)
    bias = linear.bias.detach().clone()
    nn.init.zeros_(linear.weight)
    xavier_matrices(linear)
    assert torch.equal(linear.bias, bias)
    bound = (6 / 40) ** 0.5
    assert 0.9 * bound < float(linear.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("sees_match", [True, False])
def test_group_mask_by_hand(sees_match: bool) -> None:
    # Two denoising groups of two, one auxiliary query, two moment queries; the second slot of
    # group 1 is empty. Rows read columns.
    group = torch.tensor([1, 1, 2, 2, -1, 0, 0])
    used = torch.tensor([[True, False, True, True, True, True, True]])
    seen = int(sees_match)
    expected = [
        [1, 0, 0, 0, 0, seen, seen],
        [1, 1, 0, 0, 0, seen, seen],
        [0, 0, 1, 1, 0, seen, seen],
        [0, 0, 1, 1, 0, seen, seen],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert group_mask(group, used, sees_match)[0, 0].long().tolist() == expected
