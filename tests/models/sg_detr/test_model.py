"""SG-DETR as a whole: what changes no answer, published quirks, host inputs, size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.models import build_model
from mrmodel.models.layers.query_groups import seeded_generator
from mrmodel.models.sg_detr.output import SgDetrOutput
from mrmodel.models.sg_detr.saliency import LocalSaliency
from mrmodel.types import Batch, ModelOutput
from tests.conformance.test_models import (
    evaluate,
    make_batch,
    make_targets,
    pad_more,
    take,
    total_loss,
)
from tests.models.sg_detr.whole import close, small_model
from tests.models.small import assert_bit_equal, train_pass

RELEASED: dict[str, Any] = {"preset": "released"}
PRESETS = pytest.mark.parametrize("preset", [{}, RELEASED], ids=["robust", "released"])
# The preset, and queries that do not come from the pyramid.
ROBUST = pytest.mark.parametrize("changes", [{}, {"query_selection": False}])


def garbled(batch: Batch) -> Batch:
    """The same samples with huge numbers at the padding."""
    return replace(
        batch,
        video=batch.video.masked_fill(~batch.video_mask[..., None], 1e4),
        text=batch.text.masked_fill(~batch.text_mask[..., None], 1e4),
    )


def alone(batch: Batch, sample: int) -> Batch:
    """A sample of a batch without padding."""
    one = take(batch, [sample])
    clips, tokens = int(one.video_mask.sum()), int(one.text_mask.sum())
    return replace(
        one, video=one.video[:, :clips], video_mask=one.video_mask[:, :clips],
        text=one.text[:, :tokens], text_mask=one.text_mask[:, :tokens],
    )  # fmt: skip


def answers(output: ModelOutput, sample: int, clips: int) -> list[Tensor]:
    """What a model says of a sample; its anchors without those that do not exist."""
    assert isinstance(output, SgDetrOutput)
    raw: Any = output.raw
    exists = raw.anchor_logits[sample] > -1e30
    anchors = (raw.anchor_logits, raw.anchor_centerness, raw.anchor_spans_cxw)
    queries = (output.scores, output.spans_cxw, raw.logits, raw.iou_logits)
    found = [part[sample] for part in queries] + [part[sample, exists] for part in anchors]
    return [output.saliency[sample, :clips], *found]


@ROBUST
def test_a_sample_is_as_if_alone(changes: dict[str, Any]) -> None:
    """Odd numbers of clips, more padding than there need be, and garbage in it."""
    clips, order = (9, 1, 7), [2, 0, 1]
    batch, model = make_batch(clips, (4, 6, 3)), small_model(**changes)
    padded = evaluate(model, garbled(pad_more(batch, clips=7, tokens=3)))
    permuted = evaluate(model, take(batch, order))
    for sample, count in enumerate(clips):
        expected = answers(evaluate(model, alone(batch, sample)), 0, count)
        close(answers(padded, sample, count), expected)
        close(answers(permuted, order.index(sample), count), expected)


def test_released_depends_on_padding() -> None:
    """As published: convolutions read the padding. Scores of clips do not depend on it."""
    batch, model = make_batch((12, 8), (4, 4)), small_model(**RELEASED)
    together, apart = evaluate(model, batch), evaluate(model, alone(batch, 1))
    close(together.saliency[1, :8], apart.saliency[0])
    assert not torch.allclose(together.scores[1], apart.scores[0], atol=1e-4)
    assert not torch.allclose(together.spans_cxw[1], apart.spans_cxw[0], atol=1e-4)


@ROBUST
def test_padding_changes_no_loss(changes: dict[str, Any]) -> None:
    batch, model = make_batch(), small_model(**changes)
    targets, longer = make_targets(batch), garbled(pad_more(batch, clips=7, tokens=3))
    labels = torch.cat((targets.saliency_labels, torch.zeros(3, 7)), 1)
    padded = replace(targets, saliency_labels=labels)
    losses = [
        model.criterion()(train_pass(model, given, truth)[0], truth, given)
        for given, truth in ((batch, targets), (longer, padded))
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


@PRESETS
def test_host_inputs_are_those_that_the_model_makes_itself(preset: dict[str, Any]) -> None:
    """With dropout: both ways draw the same numbers in the same order."""
    batch, model = make_batch(), small_model(**preset, dropout=0.1, input_dropout=0.3).train()
    targets, totals = make_targets(batch), []
    for seed, given in ((5, True), (5, False), (6, False)):
        torch.manual_seed(seed)
        host = model.host_inputs(batch, targets, seeded_generator()) if given else {}
        totals.append(total_loss(model, batch, replace(targets, host=host)))
    assert torch.equal(totals[0], totals[1])
    assert not torch.equal(totals[1], totals[2])


def test_negative_scores_are_those_under_the_other_sentence() -> None:
    """Sample 0 and 1 are cut out of one video: the next other one has the sentence for both."""
    batch = replace(make_batch(), vids=["a_0.0_10.0", "a_10.0_20.0", "b"])
    targets, model, other = make_targets(batch), small_model(), [2, 2, 0]
    exchanged = replace(batch, text=batch.text[other], text_mask=batch.text_mask[other])
    _, before = train_pass(model, batch, targets)
    assert before.host.negative.tolist() == other
    with torch.no_grad():
        # As published only the negative local score reads clips with their modality.
        model.modality.weight[1] = 0.0
    _, parts = train_pass(model, batch, targets)
    output, own = train_pass(model, exchanged, targets)
    mask = batch.video_mask
    close(parts.negative_local[mask], own.local[mask])
    close(parts.negative_global[mask], output.saliency[mask])
    assert not torch.allclose(before.negative_local, parts.negative_local, atol=1e-2)


@PRESETS
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_without_windows(preset: dict[str, Any], counts: tuple[int, int]) -> None:
    """One of the videos has one clip and one token."""
    batch, model = make_batch((9, 1), (4, 1)), small_model(**preset).train()
    total = total_loss(model, batch, make_targets(batch, counts))
    total.backward()
    assert math.isfinite(total.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(part.isfinite().all() for part in answers(evaluate(model, batch), 1, 1))


@PRESETS
def test_evaluation_is_deterministic(preset: dict[str, Any]) -> None:
    model, batch = small_model(**preset, dropout=0.5, drop_path=0.5), make_batch()
    assert_bit_equal(evaluate(model, batch), evaluate(model, batch))


def test_released_answers_in_fractions_of_the_true_length() -> None:
    """Nine clips are padded to twelve. Untrained, windows are proposals, and anchors themselves."""
    batch, model = make_batch((9, 9), (4, 4)), small_model(spread=0.0, **RELEASED, queries=9)
    output: Any = evaluate(model, batch)
    centres = 4 * 9 * output.spans_cxw[..., 0]  # in quarters of a clip, where all proposals lie
    close(centres, centres.round(), 1e-3)
    widths = output.spans_cxw[..., 1] * 9 / 12  # of the padded video
    allowed = torch.tensor([0.05, 0.2, 0.4, 0.85])
    assert float((widths[..., None] - allowed).abs().amin(-1).max()) < 1e-4
    half_clips = 9 * output.raw.anchor_spans_cxw[0, :24, 0]
    close(half_clips, (torch.arange(24) + 0.5) / 2, 0.1)


def test_highlights_only_has_no_window() -> None:
    batch, model = make_batch(), small_model(highlights_only=True)
    output, with_windows = evaluate(model, batch), small_model()
    assert model.detector is None
    assert (output.scores.shape, output.spans_cxw.shape) == ((3, 0), (3, 0, 2))
    shared = with_windows.state_dict()
    model.load_state_dict({key: shared[key] for key in model.state_dict()})
    assert torch.equal(evaluate(model, batch).saliency, evaluate(with_windows, batch).saliency)


def test_zero_clips_have_no_gradient_from_their_cosine() -> None:
    """Before training the projection of a zero clip is zero: its length must divide nothing."""
    clips = torch.zeros(1, 2, 8)
    clips[0, 0] = 1.0
    clips.requires_grad_()
    scores = LocalSaliency()(torch.ones(1, 8), clips)
    close(scores, torch.tensor([[math.exp(3.0), 0.0]]), 1e-4)
    assert not torch.autograd.grad(scores.sum(), clips)[0][0, 1].any()


def test_first_values() -> None:
    """Class heads start at the prior; every span stays where it is, every clip score is local."""
    batch, model = make_batch(), small_model(spread=0.0, prior=0.2)
    output, parts = train_pass(model, batch, make_targets(batch))
    assert torch.equal(output.saliency, parts.local)
    for heads in (parts.moments, parts.selector, parts.anchors):
        assert heads.logits.sigmoid().mean().item() == pytest.approx(0.2, abs=0.03)
    close(parts.moments.spans_cxw, parts.selector.spans_cxw.expand(2, -1, -1, -1))
    close(parts.auxiliary.spans_cxw[1], parts.auxiliary_queries.spans_cxw)


def test_size() -> None:
    with torch.device("meta"):
        model = build_model("sg_detr", 514, 512, RELEASED)
    # The published one, without a table of token positions that nothing reads.
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 13_472_294 - (100 + 2) * 256
