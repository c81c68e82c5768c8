"""SA-DETR as a whole: invariances, losses by name and by hand, size, clip scores alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.models import build_model
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sa_detr.criterion import SaDetrCriterion
from mrmodel.models.sa_detr.output import SaDetrOutput, SaDetrTraining
from mrmodel.models.sa_detr.settings import SaDetrSettings
from mrmodel.models.sa_detr.span_refiner import RefinedQueries
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets
from tests.conformance.test_models import evaluate, make_batch, make_targets, total_loss
from tests.models.sa_detr.whole import small_model
from tests.models.small import merged, train_pass

VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "robust"},
    {"fusion": {"update": "parallel"}, "local": {"include_token": True}},
    {"ctm": {"stage": "before"}, "vtc": {"stage": "after"}, "init": {"detach_ref": False}},
]


def answers(output: ModelOutput, mask: Tensor) -> list[Tensor]:
    saliency = output.saliency[:, : mask.shape[1]]
    return [output.scores, output.spans_cxw, saliency[mask]]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_garbage_in_padding_changes_nothing(changes: dict[str, Any]) -> None:
    model, batch = small_model(**changes), make_batch()
    noisy = replace(
        batch,
        video=batch.video.masked_fill(~batch.video_mask[..., None], 1e3),
        text=batch.text.masked_fill(~batch.text_mask[..., None], -1e3),
    )
    mask, targets = batch.video_mask, make_targets(batch)
    assert_same(answers(evaluate(model, batch), mask), answers(evaluate(model, noisy), mask))
    losses = []
    for given in (batch, noisy):
        output, _ = train_pass(model, given, targets)
        losses.append(model.criterion()(output, targets, given))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_order_of_words_does_not_matter(changes: dict[str, Any]) -> None:
    model, batch = small_model(**changes), make_batch(tokens=(4, 4, 4))
    moved = replace(batch, text=batch.text[:, [2, 0, 3, 1]])
    mask = batch.video_mask
    assert_same(answers(evaluate(model, batch), mask), answers(evaluate(model, moved), mask))


def test_order_of_clips_matters() -> None:
    model, batch = small_model(), make_batch(clips=(6, 6, 6))
    moved = replace(batch, video=batch.video.flip(1))
    first, second = evaluate(model, batch), evaluate(model, moved)
    assert not torch.allclose(first.saliency, second.saliency.flip(1), atol=1e-3)


def test_negative_scores_are_those_under_the_other_sentence() -> None:
    """Sample 0 and 1 are cut out of one video: the next other one has the sentence for both."""
    batch = replace(make_batch(), vids=["a_0.0_10.0", "a_10.0_20.0", "b"])
    model, other = small_model(), [2, 2, 0]
    _, parts = train_pass(model, batch, None)
    exchanged = replace(batch, text=batch.text[other], text_mask=batch.text_mask[other])
    expected = evaluate(model, exchanged).saliency
    assert parts.has_negative.tolist() == [True] * 3
    mask = batch.video_mask
    torch.testing.assert_close(parts.negative_saliency[mask], expected[mask], rtol=0, atol=1e-5)


def test_equal_sentences_are_no_negatives() -> None:
    batch = replace(make_batch(), text_keys=["same"] * 3)
    _, parts = train_pass(small_model(), batch, None)
    assert not parts.has_negative.any()


def layers(group: str, *terms: str) -> set[str]:
    return {f"{group}/l{layer}/{term}" for layer in range(2) for term in terms}


SPANS = ("l1", "giou")
SALIENCY = {f"saliency/{term}" for term in ("margin", "rctl", "bce_neg")}
CTM = {"align/local", "align/intra", "align/inter"}
DIRECT = layers("direct", *SPANS) | layers("quality", "iou")
INIT = {"init/l1", "init/giou"}
NOISE = layers("noise", *SPANS) | layers("quality", "margin")
ALL = SALIENCY | CTM | {"align/vtc"} | DIRECT | INIT | NOISE


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ALL),
        ({"vtc": {"enabled": False}}, ALL - {"align/vtc"}),
        ({"ctm": {"enabled": False}}, ALL - CTM),
        ({"init": {"anchors": "learned"}}, ALL - INIT),
        ({"init": {"loss": False}}, ALL - INIT),
        ({"dn": {"mode": "none"}}, ALL - NOISE),
        ({"dn": {"mode": "positive_only"}}, ALL - layers("quality", "margin")),
        ({"quality": {"on_noise": True}}, ALL | layers("quality", "noise")),
        ({"loss": {"aux": False}}, {name for name in ALL if "/l0/" not in name}),
        ({"highlights_only": True}, SALIENCY | CTM | {"align/vtc"}),
    ],
)
@pytest.mark.parametrize("counts", [(2, 1, 3), (0, 0, 0)])
def test_losses_by_name(changes: dict[str, Any], names: set[str], counts: tuple[int, ...]) -> None:
    batch, model = make_batch(), small_model(**changes)
    targets = make_targets(batch, counts)
    output, _ = train_pass(model, batch, targets)
    losses = model.criterion()(output, targets, batch)
    assert losses.keys() == names
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())


def test_weights_by_name() -> None:
    loss = {"l1": 2, "giou": 3, "align": 0.5, "saliency": 4, "moment": 10, "quality": 7}
    criterion = SaDetrCriterion(SaDetrSettings.model_validate({"loss": loss}, strict=False))
    expected = {
        "direct/l0/l1": 20, "init/giou": 30, "noise/l1/l1": 20, "quality/l1/iou": 7,
        "quality/l0/margin": 7, "align/vtc": 0.5, "align/inter": 0.5, "saliency/rctl": 4,
    }  # fmt: skip
    assert {name: criterion.weight(name) for name in expected} == pytest.approx(expected)
    published = SaDetrCriterion(SaDetrSettings())
    assert published.weight("direct/l1/l1") == 10
    assert all(published.weight(name) == 1 for name in ("init/giou", "align/local", "quality/iou"))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"vtc": {"tau": 0.5}}, {"align/vtc"}),
        ({"ctm": {"tau": 0.5}}, CTM),
        ({"saliency": {"margin": 3.0}}, {"saliency/margin"}),
        ({"saliency": {"tau": 2.0}}, {"saliency/rctl"}),
        ({"saliency": {"rctl_norm": "active"}}, {"saliency/rctl"}),
        ({"saliency": {"neg_reduction": "mean"}}, {"saliency/bce_neg"}),
        ({"quality": {"w_matched": 3.0}}, layers("quality", "iou")),
        ({"quality": {"weighting": "bins"}}, layers("quality", "iou")),
        ({"quality": {"norm": "sum_per_sample"}}, layers("quality", "iou")),
        ({"quality": {"margin": 0.9}}, layers("quality", "margin")),
        (
            {"loss": {"norm": "none"}},
            INIT | layers("direct", *SPANS) | layers("noise", *SPANS),
        ),
    ],
)
def test_a_setting_changes_its_losses_and_no_other(
    changes: dict[str, Any], names: set[str]
) -> None:
    batch, model = make_batch(), small_model()
    targets = make_targets(batch, (2, 1, 3))
    output, _ = train_pass(model, batch, targets)
    settings = merged(model.settings.model_dump(), changes)
    first = model.criterion()(output, targets, batch)
    second = SaDetrCriterion(SaDetrSettings.model_validate(settings))(output, targets, batch)
    assert {name for name in first if not torch.equal(first[name], second[name])} == names


@pytest.mark.parametrize("stage", ["before", "after"])
def test_stage_of_contrast_and_matching(stage: str) -> None:
    """Before the fusion: nothing that the fusion encoder does changes what is compared."""
    batch = make_batch()
    model = small_model(vtc={"stage": stage}, ctm={"stage": stage})
    _, first = train_pass(model, batch, None)
    with torch.no_grad():
        model.fusion.layers[1].ffn.expand.bias += 1.0  # type: ignore[union-attr]
    _, second = train_pass(model, batch, None)
    assert first.pooled
    assert second.pooled
    assert first.clip_text
    assert second.clip_text
    pairs = (
        (first.pooled.video, second.pooled.video),
        (first.pooled.text, second.pooled.text),
        (first.clip_text.clips, second.clip_text.clips),
        (first.clip_text.sentence, second.clip_text.sentence),
    )
    assert [torch.equal(*pair) for pair in pairs] == [stage == "before"] * 4


def test_the_token_has_no_position() -> None:
    video, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    sequence, valid = small_model()._sequence(video, torch.ones(1, 5, 16), mask)
    assert not sequence.position[:, 0].any()
    assert sequence.position[:, 1:].all()
    assert torch.equal(sequence.state[:, 1:], video)
    assert valid.all()


def test_losses_need_the_output_of_training() -> None:
    batch, model = make_batch(), small_model()
    with pytest.raises(TypeError, match="training mode"):
        model.criterion()(evaluate(model, batch), make_targets(batch), batch)


class HandMade:
    """One sample of four clips with two windows, two direct queries, two groups of copies."""

    def __init__(self) -> None:
        self.targets = Targets(
            spans_cxw=torch.tensor([[0.25, 0.5], [0.75, 0.5]]),
            span_counts=[2],
            saliency_pos=torch.zeros(1, 0, dtype=torch.int64),
            saliency_neg=torch.zeros(1, 0, dtype=torch.int64),
            saliency_labels=torch.zeros(1, 4),
        )
        self.batch = replace(make_batch((4,), (2,)), text_keys=["t"])
        # Query 0 answers for the second window, query 1 for the first one, 0.1 too far right.
        direct = torch.tensor([[[[0.75, 0.5], [0.35, 0.5]]]])
        copies = torch.tensor([[0.25, 0.5], [0.65, 0.5], [0.1, 0.1], [0.9, 0.1]]).repeat(2, 1)
        quality = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.9, 0.9, 0.1, 0.1])
        known = LabelledQueries(
            spans_cxw=copies[None],
            window=torch.tensor([[0, 1, 0, 1] * 2]),
            positive=torch.tensor([[True, True, False, False] * 2]),
            used=torch.ones(1, 8, dtype=torch.bool),
        )
        self.training = SaDetrTraining(
            negative_saliency=torch.zeros(1, 4),
            has_negative=torch.zeros(1, dtype=torch.bool),
            first_spans=torch.tensor([[[0.25, 0.5], [0.75, 0.3]]]),
            direct=RefinedQueries(torch.tensor([[[1.0, 2.0 / 3.0]]]).logit(1e-6), direct),
            noise=RefinedQueries(quality.logit()[None, None], copies[None, None]),
            noise_queries=known,
        )

    def losses(self, **settings: Any) -> dict[str, float]:
        given = {"layers": {"refiner": 1}, "dn": {"groups": 2}} | settings
        criterion = SaDetrCriterion(SaDetrSettings.model_validate(given))
        last = LayerOutput(torch.zeros(1, 2, 1), torch.zeros(1, 2, 2))
        output = SaDetrOutput(
            last, last.spans_cxw, last.logits[..., 0], torch.zeros(1, 4), training=self.training
        )
        found = criterion(output, self.targets, self.batch)
        return {name: float(value) for name, value in found.items()}


def test_moment_and_quality_losses_by_hand() -> None:
    found = HandMade().losses()
    # Direct: errors (0, 0) and (0.1, 0): mean .05, over 2 windows. (0.1, 0.6) and (0, 0.5):
    # intersection .4, hull and union .6.
    assert found["direct/l0/l1"] == pytest.approx(0.05 / 2)
    assert found["direct/l0/giou"] == pytest.approx((1 - 0.4 / 0.6) / 2)
    # First spans: exact, and 0.2 too narrow: (0.6, 0.9) inside of (0.5, 1).
    assert found["init/l1"] == pytest.approx(0.1 / 2)
    assert found["init/giou"] == pytest.approx((1 - 0.3 / 0.5) / 2)
    # Copies: in each group the second one is 0.1 off: 2 * .05 over 2 windows and 2 groups.
    assert found["noise/l0/l1"] == pytest.approx(0.1 / 4)
    assert found["noise/l0/giou"] == pytest.approx(2 * (1 - 0.4 / 0.6) / 4)
    # Quality of the direct queries is right.
    # Copies: .4 - .9 + .4 < 0, .3 - .5 + .4 = .2; then 0, 0.
    assert found["quality/l0/iou"] == pytest.approx(0.0, abs=1e-5)
    assert found["quality/l0/margin"] == pytest.approx(0.2 / 4, abs=1e-6)


def test_sums_over_the_windows_of_a_sample() -> None:
    found = HandMade().losses(loss={"norm": "none"})
    assert found["direct/l0/l1"] == pytest.approx(0.05)
    assert found["init/l1"] == pytest.approx(0.1)
    assert found["noise/l0/l1"] == pytest.approx(0.1)


def test_quality_of_the_copies_if_wanted() -> None:
    """IoUs 1, 2/3, .2, .2 in both groups: the mean error of eight."""
    found = HandMade().losses(quality={"on_noise": True})
    first = [0.1, 2 / 3 - 0.5, 0.2, 0.1]
    second = [0.1, 0.9 - 2 / 3, 0.1, 0.1]
    assert found["quality/l0/noise"] == pytest.approx(sum(first + second) / 8, abs=1e-5)


@pytest.mark.parametrize(
    ("match", "error"),
    [
        ({}, 0.12),  # 3 + .6 against 1.2 + .75
        ({"l1": 0.0}, 0.3),  # .6 against .75
        ({"l1": 1.0, "giou": 3.0}, 0.3),  # .3 + 1.8 against .12 + 2.25
    ],
)
def test_weights_of_the_matching_by_hand(match: dict[str, float], error: float) -> None:
    """Window (0.4, 0.6). Query 0 is 0.3 too wide, gIoU .4; query 1 is 0.12 off, gIoU .25."""
    case = HandMade()
    case.targets = replace(case.targets, spans_cxw=torch.tensor([[0.5, 0.2]]), span_counts=[1])
    case.training.noise = case.training.noise_queries = None
    spans = torch.tensor([[[0.5, 0.5], [0.62, 0.2]]])
    case.training.direct = RefinedQueries(torch.zeros(1, 1, 2), spans[None])
    case.training.first_spans = spans
    found = case.losses(match=match)
    assert found["direct/l0/l1"] == pytest.approx(error / 2)
    assert found["init/l1"] == pytest.approx(error / 2)


def test_quality_can_decide_who_answers() -> None:
    """Both queries are as near to the one window; the better quality wins if it counts."""
    case = HandMade()
    case.targets = replace(case.targets, spans_cxw=torch.tensor([[0.5, 0.5]]), span_counts=[1])
    case.training.noise = case.training.noise_queries = None
    case.training.direct = RefinedQueries(
        torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[[0.4, 0.5], [0.6, 0.5]]]])
    )
    quality = {"w_matched": 10.0}
    errors = [0.4 / 0.6 - 0.5, abs(0.4 / 0.6 - float(torch.tensor(3.0).sigmoid()))]
    found = case.losses(quality=quality, match={"quality_cost": 1.0})
    assert found["quality/l0/iou"] == pytest.approx((errors[0] + 10 * errors[1]) / 2, rel=1e-4)


def test_highlights_only_has_no_window() -> None:
    batch, model = make_batch(), small_model(highlights_only=True)
    assert model.finder is None
    output = evaluate(model, batch)
    assert output.scores.shape == (3, 0)
    assert output.spans_cxw.shape == (3, 0, 2)
    shared = small_model().state_dict()
    model.load_state_dict({key: shared[key] for key in model.state_dict()})
    expected = evaluate(small_model(), batch).saliency
    assert torch.equal(evaluate(model, batch).saliency, expected)
    total_loss(model.train(), batch, make_targets(batch, (0, 0, 0))).backward()


@pytest.mark.parametrize(
    ("video_dim", "text_dim", "millions"), [(2818, 512, 7.8), (4098, 300, 8.1)]
)
def test_size(video_dim: int, text_dim: int, millions: float) -> None:
    """SlowFast + CLIP with CLIP tokens, VGG with GloVe tokens; two channels are end-points."""
    with torch.device("meta"):
        model = build_model("sa_detr", video_dim, text_dim, {})
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.05)


def test_a_batch_of_one_has_no_contrast() -> None:
    batch: Batch = make_batch((6,), (3,))
    model, targets = small_model(), make_targets(batch, (2,))
    output, parts = train_pass(model, batch, targets)
    losses = model.criterion()(output, targets, batch)
    assert not parts.has_negative.any()
    assert not losses["align/vtc"].any()
    assert not losses["align/inter"].any()
    assert not losses["saliency/bce_neg"].any()
