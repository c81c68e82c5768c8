"""What is particular to Moment-DETR and QD-DETR beyond the recorded numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mrmodel.convert.parameter_names import match_state, our_name
from mrmodel.errors import ConfigError, UnknownNameError
from mrmodel.models import build_model
from mrmodel.types import Batch
from tests.conformance.test_models import (
    SAME_ANSWERS,
    SMALL,
    TEXT_DIM,
    VIDEO_DIM,
    evaluate,
    make_batch,
    make_targets,
    total_loss,
)


def small(name: str, **settings: Any) -> Any:
    torch.manual_seed(3)
    return build_model(name, VIDEO_DIM, TEXT_DIM, SMALL | settings)


def test_parameter_counts_of_the_published_sizes() -> None:
    """As counted in the published models, less the text positions they never train."""
    text_positions = 32 * 256 + 2 * 256
    for name, published in (("moment_detr", 4_823_305), ("qd_detr", 7_585_573)):
        model = build_model(name, 2818, 512, {})
        assert sum(p.numel() for p in model.parameters()) == published - text_positions


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"hidden": 100, "heads": 8}, "not a multiple of heads"),
        ({"dropout": 1.0}, "less than 1"),
        ({"queries": 0}, "greater than or equal to 1"),
        ({"loss": {"spam": 1.0}}, "unknown key"),
        ({"hidden": "256"}, "valid integer"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        build_model("qd_detr", 10, 10, settings)


def test_hidden_may_be_any_multiple_of_heads() -> None:
    for hidden, heads in ((128, 8), (36, 3), (20, 5)):
        model = small("qd_detr", hidden=hidden, heads=heads)
        assert evaluate(model, make_batch()).saliency.isfinite().all()


def test_legacy_mask_lets_batch_mates_leak_in() -> None:
    batch = make_batch()
    fixed, legacy = small("qd_detr"), small("qd_detr", legacy_mask_tiling=True)
    different = evaluate(fixed, batch).saliency - evaluate(legacy, batch).saliency
    assert different[batch.video_mask].abs().max() > 1e-4


def test_negative_pairs_are_the_next_samples_text() -> None:
    """Scores of the negative pairs equal those of a batch in which the texts are exchanged."""
    model, batch = small("qd_detr", dropout=0.0, input_dropout=0.0), make_batch()
    negative = model.train()(batch).extras["negative_saliency"]
    exchanged = Batch(
        batch.qids, batch.vids, batch.video, batch.video_mask,
        batch.text.roll(-1, 0), batch.text_mask.roll(-1, 0), batch.duration_s, batch.start_s,
        batch.clip_len_s, batch.text_keys,
    )  # fmt: skip
    expected = evaluate(model, exchanged).saliency
    mask = batch.video_mask
    torch.testing.assert_close(negative[mask], expected[mask], **SAME_ANSWERS)
    assert "negative_saliency" not in evaluate(model, batch).extras


def test_highlights_only_leaves_the_windows_alone() -> None:
    for name in ("moment_detr", "qd_detr"):
        model, batch = small(name, highlights_only=True).train(), make_batch()
        losses = model.criterion()(model(batch), make_targets(batch), batch)
        assert losses.keys() == {"saliency"}
        total_loss(model, batch, make_targets(batch)).backward()
        heads = model.heads if name == "moment_detr" else model.detr.heads
        assert all(p.grad is None for p in heads.span_head.parameters())


def test_classified_spans_are_windows() -> None:
    batch = make_batch()
    model = small("moment_detr", span_loss="ce", max_clips=12)
    output = evaluate(model, batch)
    assert output.last.extras["start_end_logits"].shape == (3, 5, 2, 12)
    spans = output.last.spans_cxw
    assert (spans[..., 1] > 0).all()
    total_loss(model.train(), batch, make_targets(batch)).backward()


@pytest.mark.parametrize("name", ["moment_detr", "qd_detr"])
def test_alignment_ignores_padded_tokens(name: str) -> None:
    batch = make_batch()
    model = small(name, contrastive=True, dropout=0.0, input_dropout=0.0).train()
    first = model.criterion()(model(batch), make_targets(batch), batch)["contrastive"]
    batch.text[~batch.text_mask] = 7.0
    second = model.criterion()(model(batch), make_targets(batch), batch)["contrastive"]
    torch.testing.assert_close(first, second)


def test_text_positions_move_with_a_negative_text() -> None:
    settings = {"text_positions": True, "dropout": 0.0, "input_dropout": 0.0}
    batch = make_batch(tokens=(4, 4, 4))
    clean = small("qd_detr", **settings).train()(batch).extras["negative_saliency"]
    model = small("qd_detr", **settings, legacy_negative_positions=True).train()
    legacy = model(batch).extras["negative_saliency"]
    assert (clean - legacy).abs().max() > 1e-5


def test_official_names_are_found() -> None:
    name = "module.transformer.decoder.layers.1.ca_qpos_sine_proj.bias"
    assert our_name("qd_detr", name) == "detr.decoder.layers.1.cross_query_span.bias"
    with pytest.raises(UnknownNameError):
        our_name("dqdetr", name)


def test_foreign_checkpoint_is_refused() -> None:
    model = small("qd_detr")
    fit = match_state("qd_detr", {"spam": torch.zeros(1)}, model)
    said = [str(misfit) for misfit in fit.mismatches]
    assert fit.state == {}
    assert "detr.token.state is missing" in said
    assert "spam has no counterpart" in said
    wrong = {"global_rep_token": torch.zeros(5)}
    said = [str(misfit) for misfit in match_state("qd_detr", wrong, model).mismatches]
    assert "global_rep_token is (5,), expected (32,)" in said
