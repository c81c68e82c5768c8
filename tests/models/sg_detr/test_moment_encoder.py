"""Moment encoder: one run that equals the two runs it replaces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.layers.position import clip_positions
from mrmodel.models.sg_detr.moment_encoder import MomentEncoder
from mrmodel.models.sg_detr.output import Alignment
from mrmodel.models.sg_detr.settings import SgDetrSettings

D = 16
MASK = torch.arange(6) < torch.tensor([6, 4, 1, 5])[:, None]
# Some clips relevant, all of them, none of one, none of several.
RELEVANT = torch.tensor([[0, 1, 1, 0, 1, 0], [1] * 4 + [0] * 2, [0] * 6, [0] * 6]) > 0


def encoder_of(bce_frames: str = "split") -> MomentEncoder:
    torch.manual_seed(0)
    settings = SgDetrSettings.model_validate(
        {
            "hidden": D,
            "heads": 2,
            "ffn": 24,
            "dropout": 0.0,
            "loss": {"align": {"bce_frames": bce_frames}},
        }
    )
    encoder = MomentEncoder(settings)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


def inputs_of() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(4, 6, D, generator=generator)
    sentence = torch.randn(4, D, generator=generator)
    return clips, clip_positions(MASK, D), sentence, RELEVANT, MASK


def two_runs(encoder: MomentEncoder) -> tuple[Tensor, Tensor]:
    """States (B, 1 + L, d) of [token; clips] with relevant keys, and with the other keys."""
    clips, position, *_ = inputs_of()
    token = encoder.token.expand(4, 1, D)
    sequence = torch.cat((token, clips), dim=1)
    position = torch.cat((encoder.token_position.expand(4, 1, D), position), dim=1)
    runs = []
    for keys in (RELEVANT & MASK, ~RELEVANT & MASK):
        allowed = torch.cat((torch.ones(4, 1, dtype=torch.bool), keys), dim=1)
        runs.append(encoder.layer(sequence, position, allowed[:, None, None, :]))
    return runs[0], runs[1]


@pytest.mark.parametrize("training", [True, False])
def test_equals_two_runs_with_limited_keys(training: bool) -> None:
    encoder = encoder_of().train(training)
    found = encoder(*inputs_of())
    relevant, others = two_runs(encoder)
    torch.testing.assert_close(found.moment, relevant[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.non_moment, others[:, 0], rtol=1e-5, atol=1e-5)
    expected = torch.where(RELEVANT[:, :, None], relevant[:, 1:], others[:, 1:])
    torch.testing.assert_close(found.clips[MASK], expected[MASK], rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_two_runs() -> None:
    encoder = encoder_of()
    found = encoder(*inputs_of())
    weights = torch.randn(2, 4, D)
    relevant, others = two_runs(encoder)
    parameters = list(encoder.parameters())
    for gradient, expected in zip(
        torch.autograd.grad(
            (torch.stack((found.moment, found.non_moment)) * weights).sum(), parameters
        ),
        torch.autograd.grad(
            (torch.stack((relevant[:, 0], others[:, 0])) * weights).sum(), parameters
        ),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_shared_frames_are_the_clips_that_came_in() -> None:
    clips, *rest = inputs_of()
    found = encoder_of("shared")(clips, *rest)
    assert found.clips is clips
    assert found.sentence is rest[1]
    assert torch.equal(found.moment, encoder_of()(clips, *rest).moment)


def test_each_token_reads_its_own_clips_only() -> None:
    clips, *rest = inputs_of()
    clips.requires_grad_()
    found = encoder_of()(clips, *rest)
    for token, kind in ((found.moment, RELEVANT), (found.non_moment, ~RELEVANT)):
        gradient = torch.autograd.grad(token.sum(), clips, retain_graph=True)[0].abs().sum(-1)
        assert torch.equal(gradient > 0, kind & MASK)


def test_without_clips_of_its_kind_a_token_is_the_same_for_every_sample() -> None:
    found = encoder_of()(*inputs_of())
    for first, second in (
        (found.moment[2], found.moment[3]),
        (found.moment[3], found.non_moment[1]),
    ):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.moment[0], found.moment[3], atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(training: bool) -> None:
    encoder = encoder_of().train(training)
    clips, position, sentence, relevant, mask = inputs_of()
    expected = encoder(clips, position, sentence, relevant, mask)
    more = torch.zeros(4, 3, dtype=torch.bool)
    longer = torch.cat((mask, more), dim=1)
    noisy = torch.full((4, 9, D), 1e4)
    noisy[:, :6] = torch.where(mask[:, :, None], clips, noisy[:, :6])
    claimed = torch.cat((relevant | ~mask, ~more), dim=1)  # labels of padding are garbage too
    found = encoder(noisy, clip_positions(longer, D), sentence, claimed, longer)
    for name in ("moment", "non_moment"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(found.clips[longer], expected.clips[mask], rtol=1e-5, atol=1e-5)
    assert found.clips.isfinite().all()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    encoder = encoder_of().eval()
    clips, position, sentence, relevant, mask = inputs_of()
    together: Alignment = encoder(clips, position, sentence, relevant, mask)
    for sample, length in enumerate(mask.sum(1).tolist()):
        rows = slice(sample, sample + 1)
        alone = encoder(
            clips[rows, :length],
            clip_positions(mask[rows, :length], D),
            sentence[rows],
            relevant[rows, :length],
            mask[rows, :length],
        )
        torch.testing.assert_close(alone.moment, together.moment[rows], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.clips, together.clips[rows, :length], rtol=1e-5, atol=1e-5)


def test_positions_may_be_shared() -> None:
    clips, _, sentence, relevant, _ = inputs_of()
    full = torch.ones_like(MASK)
    encoder = encoder_of()
    shared = clip_positions(full, D)
    assert len(shared) == 1
    found = encoder(clips, shared, sentence, relevant, full)
    expected = encoder(clips, shared.expand(4, -1, -1), sentence, relevant, full)
    torch.testing.assert_close(found.moment, expected.moment)


def test_gradients_are_finite_and_reach_every_parameter() -> None:
    encoder = encoder_of()
    found = encoder(*inputs_of())
    total = found.moment.square().sum() + found.non_moment.sum() + found.clips[MASK].sum()
    for gradient in torch.autograd.grad(total, list(encoder.parameters())):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_half_precision() -> None:
    encoder = encoder_of()
    with torch.autocast("cpu", torch.bfloat16):
        clips, *rest = inputs_of()
        found = encoder(clips.bfloat16(), *rest)
    assert found.moment.isfinite().all()
