"""SG-DETR as a whole: what must change no answer, the negative sentence, losses and size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.errors import ConfigError
from mrmodel.models import build_model
from mrmodel.models.sg_detr.output import SgDetrOutput
from mrmodel.types import Batch, ModelOutput
from tests.conformance.test_models import (
    TEXT_DIM,
    VIDEO_DIM,
    evaluate,
    make_batch,
    make_targets,
    pad_more,
    take,
    total_loss,
)
from tests.models.sg_detr.whole import small_model
from tests.models.small import train_pass

# The detectors, and the switches that read features or pad in a way of their own.
KINDS: dict[str, dict[str, Any]] = {
    "dab": {"detector": "dab"},
    "dino": {"detector": "dino", "qs": {"content": "token"}},
    "hybrid": {},
    "projected": {"local": {"space": "projected"}},
    "pair": {"sgca": {"gate": "pair_renorm"}, "atss": {"layout": "multi_width"}},
}
GARBAGE = 1e4


@pytest.fixture(params=KINDS)
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


def garbled(batch: Batch) -> Batch:
    """The same samples with huge numbers at the padding."""
    return replace(
        batch,
        video=batch.video.masked_fill(~batch.video_mask[..., None], GARBAGE),
        text=batch.text.masked_fill(~batch.text_mask[..., None], GARBAGE),
    )


def rows_of(output: ModelOutput, mask: Tensor) -> list[Tensor]:
    """What a model says, sample by sample."""
    assert isinstance(output, SgDetrOutput)
    saliency = output.saliency[:, : mask.shape[1]].masked_fill(~mask, 0.0)
    found = [output.last.logits, output.last.spans_cxw, output.scores, saliency]
    if output.raw is not None and output.raw.iou_logits is not None:
        found.append(output.raw.iou_logits)
    return found


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_padding_changes_no_answer(changes: dict[str, Any]) -> None:
    batch, model = make_batch(), small_model(**changes)
    expected = rows_of(evaluate(model, batch), batch.video_mask)
    for padded in (garbled(batch), garbled(pad_more(batch, clips=7, tokens=3))):
        assert_same(rows_of(evaluate(model, padded), batch.video_mask), expected)


def test_padding_changes_no_loss(changes: dict[str, Any]) -> None:
    batch, model = make_batch(), small_model(**changes)
    targets = make_targets(batch)
    padded = garbled(pad_more(batch, clips=7, tokens=3))
    labels = torch.cat((targets.saliency_labels, torch.zeros(3, 7)), 1)
    losses = []
    for given, truth in ((batch, targets), (padded, replace(targets, saliency_labels=labels))):
        output, _ = train_pass(model, given, truth)
        losses.append(model.criterion()(output, truth, given))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-5, atol=1e-5, msg=name)


def test_permuted_samples_give_permuted_answers(changes: dict[str, Any]) -> None:
    batch, model = make_batch(), small_model(**changes)
    order = [2, 0, 1]
    expected = [part[order] for part in rows_of(evaluate(model, batch), batch.video_mask)]
    permuted = take(batch, order)
    assert_same(rows_of(evaluate(model, permuted), permuted.video_mask), expected)
    alone = take(batch, [1])
    alone = replace(alone, video=alone.video[:, :5], video_mask=alone.video_mask[:, :5])
    own = [part[:, :5] if i == 3 else part for i, part in enumerate(expected)]
    assert_same(rows_of(evaluate(model, alone), alone.video_mask), [part[2:] for part in own])


def test_matched_losses_do_not_depend_on_the_order_of_samples() -> None:
    """Without noise, and without negative sentences, which are those of the next sample."""
    batch = replace(make_batch(), text_keys=["same"] * 3)
    model = small_model(dn={"enabled": False})
    targets = make_targets(batch, (2, 1, 3))
    order = [2, 0, 1]
    spans = targets.spans_cxw.split(targets.span_counts)
    permuted = replace(
        targets,
        spans_cxw=torch.cat([spans[i] for i in order]),
        span_counts=[targets.span_counts[i] for i in order],
        saliency_pos=targets.saliency_pos[order],
        saliency_neg=targets.saliency_neg[order],
        saliency_labels=targets.saliency_labels[order],
    )
    first = model.criterion()(train_pass(model, batch, targets)[0], targets, batch)
    given = take(batch, order)
    second = model.criterion()(train_pass(model, given, permuted)[0], permuted, given)
    for name, loss in first.items():
        torch.testing.assert_close(second[name], loss, rtol=1e-5, atol=1e-5, msg=name)


def test_order_of_tokens_changes_no_answer(changes: dict[str, Any]) -> None:
    batch, model = make_batch(), small_model(**changes)
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    permuted = replace(batch, text=batch.text[:, order], text_mask=batch.text_mask[:, order])
    expected = rows_of(evaluate(model, batch), batch.video_mask)
    assert_same(rows_of(evaluate(model, permuted), batch.video_mask), expected)
    located = small_model(**changes | {"text_positions": True})
    first, second = (evaluate(located, given).saliency for given in (batch, permuted))
    assert not torch.allclose(first, second, atol=1e-4)


def test_order_of_clips_matters() -> None:
    """A reversed video is another video: its reversed answer is not the answer."""
    batch, model = make_batch(clips=(6, 6, 6)), small_model()
    turned = replace(batch, video=batch.video.flip(1))
    first, second = evaluate(model, batch).saliency, evaluate(model, turned).saliency
    assert not torch.allclose(first, second.flip(1), atol=1e-3)


def test_clips_differ_by_their_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without position codes and end-points, clips in another order have their scores in it."""
    batch, model = make_batch(clips=(6, 6, 6)), small_model(detector="dab", use_tef=False)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = replace(batch, video=batch.video[:, order])
    first, second = evaluate(model, batch), evaluate(model, moved)
    assert not torch.allclose(second.saliency, first.saliency[:, order], atol=1e-3)
    monkeypatch.setattr(
        "mrmodel.models.sg_detr.model.clip_positions",
        lambda mask, hidden: torch.zeros(1, mask.shape[1], hidden),
    )
    first, second = evaluate(model, batch), evaluate(model, moved)
    assert_same([second.saliency, second.scores], [first.saliency[:, order], first.scores])


def test_negative_scores_are_those_under_the_other_sentence(changes: dict[str, Any]) -> None:
    """Sample 0 and 1 are cut out of one video: the next other one has the sentence for both."""
    batch = replace(make_batch(), vids=["a_0.0_10.0", "a_10.0_20.0", "b"])
    model, other = small_model(**changes), [2, 2, 0]
    _, parts = train_pass(model, batch, None)
    exchanged = replace(batch, text=batch.text[other], text_mask=batch.text_mask[other])
    output, own = train_pass(model, exchanged, None)
    assert parts.has_negative.tolist() == [True] * 3
    mask = batch.video_mask
    torch.testing.assert_close(parts.negative_local, own.local, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        parts.negative_global[mask], output.saliency[mask], rtol=0, atol=1e-5
    )
    assert not torch.allclose(parts.negative_local, parts.local, atol=1e-2)


def test_equal_sentences_are_no_negatives() -> None:
    batch = replace(make_batch(), text_keys=["same"] * 3)
    _, parts = train_pass(small_model(), batch, None)
    assert not parts.has_negative.any()


TERMS = ("cls", "l1", "giou", "iou")
HIGHLIGHTS = {
    f"hl/{score}/{term}"
    for score in ("local", "global")
    for term in ("margin", "rctl", "bce_pos", "bce_neg")
}
ALIGNMENT = {"aux/align", "aux/bce"}
SELECTOR = {f"selector/{term}" for term in TERMS[:3]}
ANCHORS = {f"atss/{term}" for term in ("cls", "l1", "giou", "centerness")}


def layers(group: str, terms: tuple[str, ...] = TERMS) -> set[str]:
    return {f"{group}/l{layer}/{term}" for layer in range(2) for term in terms}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {},
            HIGHLIGHTS | ALIGNMENT | SELECTOR | ANCHORS
            | layers("detr") | layers("dn") | layers("auxq"),
        ),
        ({"detector": "dino"}, HIGHLIGHTS | ALIGNMENT | SELECTOR | layers("detr") | layers("dn")),
        ({"detector": "dab"}, HIGHLIGHTS | ALIGNMENT | layers("detr")),
        (
            {"detector": "dab", "iou_head": False, "loss": {"align": {"enabled": False}}},
            HIGHLIGHTS | layers("detr", TERMS[:3]),
        ),
        ({"highlights_only": True}, HIGHLIGHTS | ALIGNMENT),
        (
            {"highlights_only": True, "gsm": {"enabled": False}},
            {name for name in HIGHLIGHTS if "local" in name} | ALIGNMENT,
        ),
    ],
)  # fmt: skip
def test_losses_by_name(changes: dict[str, Any], names: set[str]) -> None:
    batch, model = make_batch(), small_model(**changes)
    targets = make_targets(batch)
    output, _ = train_pass(model, batch, targets)
    losses = model.criterion()(output, targets, batch)
    assert losses.keys() == names
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            {
                "hl/local/margin": 1, "hl/global/bce_neg": 1, "detr/l0/cls": 5, "detr/l1/l1": 10,
                "detr/l1/giou": 1, "detr/l0/iou": 1, "selector/cls": 5, "dn/l1/l1": 10,
                "auxq/l0/iou": 1, "atss/cls": 5, "atss/l1": 10, "atss/giou": 1,
                "atss/centerness": 1, "aux/align": 1, "aux/bce": 1,
            },
        ),
        # Two decoder layers: the anchors count 2 * 2 times where they are scaled.
        (
            {
                "aux": {"weight": 0.5},
                "atss": {"layer_scale": True},
                "loss": {
                    "weights": {
                        "l1": 2, "giou": 3, "ce": 4, "iou": 5, "centerness": 6, "detr": 0.1,
                        "atss": 10, "hl": 7, "aux": 8,
                    }
                },
            },
            {
                "hl/global/rctl": 7, "detr/l0/cls": 0.4, "selector/l1": 0.2, "dn/l0/giou": 0.3,
                "detr/l1/iou": 0.5, "auxq/l1/iou": 0.25, "auxq/l1/cls": 0.2, "atss/cls": 160,
                "atss/centerness": 240, "aux/align": 8,
            },
        ),
    ],
)  # fmt: skip
def test_weights_by_name(changes: dict[str, Any], expected: dict[str, float]) -> None:
    criterion = small_model(**changes).criterion()
    assert {name: criterion.weight(name) for name in expected} == pytest.approx(expected)


def test_losses_need_the_output_of_training() -> None:
    batch, model = make_batch(), small_model()
    with pytest.raises(TypeError, match="training mode"):
        model.criterion()(evaluate(model, batch), make_targets(batch), batch)


def test_highlights_only_has_no_window() -> None:
    batch, model = make_batch(), small_model(highlights_only=True)
    assert model.detector is None
    output = evaluate(model, batch)
    assert output.scores.shape == (3, 0)
    assert output.spans_cxw.shape == (3, 0, 2)
    with_windows = small_model()
    shared = with_windows.state_dict()
    model.load_state_dict({key: shared[key] for key in model.state_dict()})
    expected = evaluate(with_windows, batch).saliency
    assert torch.equal(evaluate(model, batch).saliency, expected)
    total_loss(model.train(), batch, make_targets(batch, (0, 0, 0))).backward()


@pytest.mark.parametrize("first", [0, 3])
def test_cosine_is_of_the_channels_that_share_the_space(first: int) -> None:
    """Before training: ten times the cosine of mean token and clip, and nothing on top."""
    batch = make_batch()
    model = small_model(spread=0.0, local={"first_channel": first})
    output, parts = train_pass(model, batch, None)
    for b in range(3):
        sentence = batch.text[b, batch.text_mask[b]].mean(0)
        rows = batch.video[b, batch.video_mask[b], first : first + TEXT_DIM]
        expected = 10.0 * F.cosine_similarity(sentence[None], rows)
        own = parts.local[b, batch.video_mask[b]]
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    assert torch.equal(output.saliency, parts.local)


@pytest.mark.parametrize(
    ("video_dim", "local", "fits"),
    [
        (TEXT_DIM + 2, {}, True),
        (TEXT_DIM + 1, {}, False),
        (VIDEO_DIM, {"first_channel": 4}, True),
        (VIDEO_DIM, {"first_channel": 5}, False),
        (5, {"space": "projected"}, True),
    ],
)
def test_raw_space_needs_as_many_channels_as_tokens(
    video_dim: int, local: dict[str, Any], fits: bool
) -> None:
    """Two of the channels are the temporal end-points, which are no feature."""
    settings = {"hidden": 16, "heads": 2, "ffn": 8, "local": local}
    if fits:
        build_model("sg_detr", video_dim, TEXT_DIM, settings)
        return
    with pytest.raises(ConfigError, match=r"models\.sg_detr\.local\.space"):
        build_model("sg_detr", video_dim, TEXT_DIM, settings)


def test_end_points_are_read_if_wanted() -> None:
    batch = make_batch()
    moved = replace(batch, video=batch.video.clone())
    moved.video[..., -2:] += 1.0
    for wanted in (True, False):
        model = small_model(use_tef=wanted)
        first, second = evaluate(model, batch), evaluate(model, moved)
        assert torch.equal(first.saliency, second.saliency) != wanted


@pytest.mark.parametrize(("space", "millions"), [("raw", 17.6), ("projected", 12.9)])
def test_size(space: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_model("sg_detr", 514, 512, {"local": {"space": space}})
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.05)
