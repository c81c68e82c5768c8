"""VideoLights beyond the recorded numbers: its layers by hand, and what each switch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.errors import ConfigError
from mrmodel.models import build_model
from mrmodel.models.layers.attention import attend
from mrmodel.models.settings import DetrSettings
from mrmodel.models.video_lights.bi_directional_fusion import (
    BiDirectionalFusionLayer,
    CrossMasks,
    Text,
)
from mrmodel.models.video_lights.feature_refinement import FeatureRefinement, clip_cosine
from mrmodel.models.video_lights.model import VideoLights
from mrmodel.models.video_lights.moment_to_highlight import MomentToHighlight
from mrmodel.models.video_lights.settings import BidirectionalFusionSettings
from mrmodel.types import LayerOutput
from tests.conformance.test_models import (
    SMALL,
    TEXT_DIM,
    VIDEO_DIM,
    assert_same_answers,
    assert_same_gradients,
    evaluate,
    gradients,
    make_batch,
    make_targets,
    pad_more,
    total_loss,
)

D = 12


def small(**settings: Any) -> VideoLights:
    torch.manual_seed(3)
    model = build_model("video_lights", VIDEO_DIM, TEXT_DIM, SMALL | settings)
    assert isinstance(model, VideoLights)
    return model


def without_dropout(**settings: Any) -> VideoLights:
    return small(dropout=0.0, input_dropout=0.0, **settings).train()


def test_parameter_count_of_the_published_size() -> None:
    """As counted in the published model, less what it never trains."""
    untrained = (32 * 256 + 2 * 256) + (256 * 64 + 64) + 2 * 256
    model = build_model("video_lights", 2818, 512, {})
    assert sum(p.numel() for p in model.parameters()) == 10_399_975 - untrained


# Refinement


def refine_as_published(
    layer: FeatureRefinement, clips: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """Clip by clip and word by word, with the matrix whose rows are all alike."""
    rows = (layer.correspondence_scale * layer.correspondence).expand(tokens.shape[1], -1)
    out = torch.zeros_like(clips)
    for b in range(len(clips)):
        scores = (tokens[b] @ layer.pooling).squeeze(1)
        weights = torch.where(mask[b], scores.exp(), 0.0)
        sentence = (weights / weights.sum()) @ tokens[b]
        for t in range(clips.shape[1]):
            clip = clips[b, t]
            fit = (tokens[b] @ clip).softmax(0)  # padded words take part
            similarity = clip @ sentence / (clip.norm() * sentence.norm())
            parts = (clip, similarity * layer.similarity[:, 0], sentence, fit @ rows)
            out[b, t] = layer.mixer(torch.cat(parts)).relu()
    return out


def refinement(correspondence: Any = "constant", p: float = 0.0) -> tuple[Any, ...]:
    torch.manual_seed(1)
    layer = FeatureRefinement(D, correspondence, p)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    return layer, torch.randn(2, 5, D), torch.randn(2, 4, D), torch.ones(2, 5).bool(), mask


def test_refinement_equals_the_published_sum() -> None:
    layer, clips, tokens, clip_mask, mask = refinement()
    expected = refine_as_published(layer, clips, tokens, mask)
    torch.testing.assert_close(layer.eval()(clips, tokens, clip_mask, mask), expected)


def test_cosine_of_clips_and_its_gradient() -> None:
    torch.manual_seed(0)
    clips, vector = torch.randn(2, 5, D), torch.randn(2, 1, D, requires_grad=True)
    clips[1, 3] = 0.0
    clips.requires_grad_()
    found, expected = clip_cosine(clips, vector), F.cosine_similarity(clips, vector, dim=-1)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(2, 5)
    weights[1, 3] = 0.0  # a clip of zeros has no direction to turn
    inputs = [clips, vector]
    for gradient, reference in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference)
    assert torch.autograd.grad(clip_cosine(clips, vector).sum(), clips)[0].isfinite().all()


def test_refinement_with_and_without_dropout_agree_when_nothing_is_dropped() -> None:
    layer, *inputs = refinement(p=1e-9)
    torch.testing.assert_close(layer.train()(*inputs), layer.eval()(*inputs), rtol=1e-5, atol=1e-6)


def test_constant_correspondence_says_nothing_of_the_words_and_words_does() -> None:
    for correspondence, informed in (("constant", False), ("words", True)):
        layer, clips, tokens, clip_mask, mask = refinement(correspondence)
        with torch.no_grad():  # only the correspondence is left
            layer.mixer.weight[:, : 3 * D] = 0.0
        found = layer.eval()(clips, tokens, clip_mask, mask)
        assert bool((found - found[:1, :1]).abs().max() > 1e-4) is informed


def test_words_are_the_valid_tokens_that_fit_the_clip() -> None:
    layer, clips, tokens, clip_mask, mask = refinement("words")
    fit = (tokens[1, :2] @ clips[1, 3] / D**0.5).softmax(0) @ tokens[1, :2]
    correspondence = fit * (layer.correspondence_scale * layer.correspondence)[0]
    with torch.no_grad():
        layer.mixer.weight[:, : 3 * D] = 0.0
    expected = (layer.mixer.weight[:, 3 * D :] @ correspondence + layer.mixer.bias).relu()
    torch.testing.assert_close(layer.eval()(clips, tokens, clip_mask, mask)[1, 3], expected)


# Fusion


def fuse_plainly(layer: Any, clips: Tensor, code: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Steps 1 to 3 of the page's section 3 and the feed-forward block: (v2, y)."""

    def read(a: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = (a.project_query(query), a.project_key(key), a.project_value(value))
        return a.out_proj(attend(*rows, a.heads, None))

    first = layer.norm_text(
        clips + layer.linear_text(read(layer.read_text, clips + code, tokens, tokens))
    )
    words = tokens + layer.linear_video(read(layer.read_video, tokens, clips + code, clips))
    words = words if layer.norm_video is None else layer.norm_video(words)
    fused = layer.norm_fused(
        first + layer.linear_fused(read(layer.read_fused, first, words, words))
    )
    return fused, layer.ffn.contract(layer.ffn.activation(layer.ffn.expand(fused)))


@pytest.mark.parametrize("ffn_residual", [False, True])
@pytest.mark.parametrize("text_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_fusion_layer(ffn_residual: bool, text_norm: bool, training: bool) -> None:
    torch.manual_seed(2)
    settings = DetrSettings(hidden=D, heads=3, ffn=20, dropout=0.0)
    fusion = BidirectionalFusionSettings(ffn_residual=ffn_residual, text_norm=text_norm)
    layer = BiDirectionalFusionLayer(settings, fusion).train(training)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    clips, code, tokens = torch.randn(2, 5, D), torch.randn(1, 5, D), torch.randn(2, 3, D)
    fused, changed = fuse_plainly(layer, clips, code, tokens)
    expected = layer.norm_ffn(changed + (fused if ffn_residual else changed))
    with torch.set_grad_enabled(training):
        found = layer(clips, code, Text(tokens, tokens, negatives=True), CrossMasks(None, None))
    torch.testing.assert_close(found[:2], expected, rtol=1e-4, atol=1e-5)
    negative = fuse_plainly(layer, clips, code, tokens.roll(-1, 0))
    expected = layer.norm_ffn(negative[1] + (negative[0] if ffn_residual else negative[1]))
    torch.testing.assert_close(found[2:], expected, rtol=1e-4, atol=1e-5)


# From the best window to highlights


def window_output(spans: list[tuple[float, float]]) -> LayerOutput:
    """Two queries a sample: the first one is sure, and has the given (start, end)."""
    start, end = torch.tensor(spans).unbind(1)
    best = torch.stack(((start + end) / 2, end - start), 1)
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]).expand(len(spans), -1, -1)
    return LayerOutput(logits, torch.stack((best, torch.full_like(best, 0.5)), 1))


def scores_of(
    layer: MomentToHighlight, rows: list[Tensor], video: Tensor, memory: Tensor
) -> Tensor:
    """Section 5 of the page for given slices, without any closed form."""
    summary = torch.stack([layer.gru(row[None])[1][0, 0] for row in rows])
    weighted = memory * (1.0 + (video * summary[:, None]).sum(-1, keepdim=True))
    return layer.score(weighted).sum(-1) / D**0.5


SPANS = [(0.22, 0.55), (-0.35, 0.11), (0.93, 1.3), (0.55, 0.55)]


def test_window_saliency_reads_the_clips_of_the_window() -> None:
    torch.manual_seed(4)
    layer, video, memory = MomentToHighlight(D), torch.randn(4, 10, D), torch.randn(4, 10, D)
    lengths = [10, 8, 10, 5]
    mask = torch.arange(10)[None] < torch.tensor(lengths)[:, None]
    slices = [video[0, 2:6], video[1, 0:1], video[2, 9:10], video[3, 2:3]]
    expected = scores_of(layer, slices, video, memory)
    torch.testing.assert_close(layer(video, memory, window_output(SPANS), mask), expected)


def test_legacy_window_slice_is_a_python_slice_of_the_padded_clips() -> None:
    torch.manual_seed(4)
    layer, video = MomentToHighlight(D, legacy_slice=True), torch.randn(4, 10, D)
    memory, mask = torch.randn(4, 10, D), torch.zeros(4, 10).bool()
    slices = []
    for i, (start, end) in enumerate(SPANS):
        row = video[i, int(start * 10 // 1) : int(end * 10 // 1) + 1]
        slices.append(F.pad(row, (0, 0, 0, 10 - len(row))))
    assert not slices[1].any()  # -4:2 of ten clips is nothing
    expected = scores_of(layer, slices, video, memory)
    torch.testing.assert_close(layer(video, memory, window_output(SPANS), mask), expected)


def test_windows_learn_nothing_from_the_feedback() -> None:
    model, batch = without_dropout(), make_batch()
    output = model(batch)
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(
        output.extras["window_saliency"].sum(), list(parameters.values()), allow_unused=True
    )
    reached = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    assert {"window_saliency.gru.weight_hh_l0", "window_saliency.score.weight"} <= reached
    assert not any(
        name.startswith(("detr.heads.", "detr.decoder.", "detr.anchors")) for name in reached
    )


# The whole model


def test_evaluation_runs_neither_negative_pairs_nor_the_feedback() -> None:
    model, batch, sizes = small(), make_batch(), {}
    for name in ("detr.encoder", "window_saliency"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, inputs, output, name=name: sizes.update({name: len(output[-1])})
        )
    assert evaluate(model, batch).extras == {}
    assert sizes == {"detr.encoder": 3}
    assert model.train()(batch).extras.keys() == {
        "negative_saliency", "contrastive_text", "video_text_cosine", "window_saliency",
    }  # fmt: skip
    assert sizes["detr.encoder"] == 6


def test_parts_that_are_off_are_not_built() -> None:
    model, batch = small(contrastive=False, moment_to_highlight=False).train(), make_batch()
    assert not [n for n, _ in model.named_parameters() if "contrastive" in n or "window" in n]
    losses = model.criterion()(model(batch), make_targets(batch), batch)
    assert {"task_specific", "hard_positive", "hard_negative"} <= losses.keys()
    assert not {"task_coupled", "video_text", "contrastive"} & losses.keys()


def test_highlights_only_leaves_the_losses_of_clip_scores() -> None:
    model, batch = small(highlights_only=True).train(), make_batch()
    losses = model.criterion()(model(batch), make_targets(batch), batch)
    parts = {"saliency", "task_specific", "task_coupled", "hard_negative", "hard_positive"}
    assert losses.keys() == parts


SWITCHES: list[dict[str, Any]] = [
    {"kernel": 3},
    {"refinement": {"correspondence": "words"}},
    {"fusion": {"layers": 2, "ffn_residual": True, "text_norm": True}},
    {"batch_reduction": "mean", "text_positions": True, "drop": "path"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(switches))
def test_switches_keep_samples_apart_and_learn(switches: dict[str, Any]) -> None:
    batch = make_batch()
    targets, padded = make_targets(batch), pad_more(batch, clips=6, tokens=5)
    model = small(**switches)
    assert_same_answers(evaluate(model, batch), evaluate(model, padded), batch.video_mask)
    model = without_dropout(**switches)
    total_loss(model, batch, targets).backward()
    expected = gradients(model)
    model.zero_grad()
    targets.saliency_labels = F.pad(targets.saliency_labels, (0, 6))
    total_loss(model, padded, targets).backward()
    assert_same_gradients(gradients(model), expected)


def test_a_kernel_reads_neighbours() -> None:
    for kernel, reach in ((1, 0), (3, 2), (5, 4)):  # two layers
        projection, batch = small(kernel=kernel).eval().projections, make_batch()
        before = projection(batch.video, batch.text, (batch.video_mask, batch.text_mask)).video
        batch.video[0, 4] += 1.0
        after = projection(batch.video, batch.text, (batch.video_mask, batch.text_mask)).video
        changed = (before[0] - after[0]).abs().amax(-1) > 0
        assert changed.nonzero().flatten().tolist() == [i for i in range(9) if abs(i - 4) <= reach]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"kernel": 2}, "2 is even"),
        ({"refinement": {"correspondence": "clips"}}, "'constant' or 'words'"),
        ({"fusion": {"layers": 0}}, "greater than or equal to 1"),
        ({"batch_reduction": "median"}, "'sum' or 'mean'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        build_model("video_lights", 10, 10, settings)


@pytest.mark.parametrize(
    "switch", ["legacy_mask_tiling", "legacy_loss_padding", "legacy_window_slice"]
)
def test_legacy_switches_change_what_they_are_named_for(switch: str) -> None:
    batch = make_batch()
    targets, criterion = make_targets(batch), small().criterion()
    clean, legacy = without_dropout(), without_dropout(**{switch: True})
    first = criterion(clean(batch), targets, batch)
    second = legacy.criterion()(legacy(batch), targets, batch)
    changed = {name for name in first if not torch.allclose(first[name], second[name], rtol=1e-4)}
    if switch == "legacy_mask_tiling":
        assert {"saliency", "label"} <= changed
    elif switch == "legacy_loss_padding":
        directions = {"task_specific", "task_coupled", "video_text", "hard_negative"}
        assert directions <= changed
        assert not {"saliency", "span", "label"} & changed
    else:
        assert changed == {"task_coupled"}
