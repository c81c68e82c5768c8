"""Every switch and every row of the ablation: it runs, all of it learns, it can be saved."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mrmodel.models import build_model
from mrmodel.types import ModelOutput
from tests.conformance.test_models import (
    TEXT_DIM,
    VIDEO_DIM,
    evaluate,
    make_batch,
    make_targets,
    total_loss,
)
from tests.models.sg_detr.whole import small_model

# Table 2 of the paper, rows a to e.
ROW_A = {
    "detector": "dab",
    "iou_head": False,
    "sgca": {"gate": "none"},
    "gsm": {"enabled": False},
    "match": {"cls": "prob"},
}
ROW_B = ROW_A | {"sgca": {"gate": "clip"}}
ROW_C = {"detector": "dab", "gsm": {"enabled": False}}
ABLATION = {"a": ROW_A, "b": ROW_B, "c": ROW_C, "d": {"detector": "dab"}, "e": {}}
SWITCHES: list[dict[str, Any]] = [
    {"preset": "robust"},
    {"detector": "dino"},
    {"drop": "unit", "dropout": 0.1, "input_dropout": 0.5},
    {"use_tef": False, "text_positions": True, "projection_layers": 1},
    {"local": {"space": "projected"}},
    {"local": {"first_channel": 3, "alpha": 5.0, "beta": 1.0}},
    {"pool": {"query": "learned", "ffn": False}},
    {"pool": {"query": "cls", "residual_mean": False, "layers": 2}},
    {"sgca": {"gate": "pair", "layers": 2}},
    {"sgca": {"gate": "pair_renorm", "detach_gate": False}},
    {"sgca": {"gate": "clip", "detach_gate": True}},
    {"gsm": {"detach_in_mr": True}},
    {"qs": {"enabled": False}},
    {"qs": {"content": "token"}},
    {"qs": {"width": 0.05}},
    {"decoder": {"layers": 1}},
    {"decoder": {"look_forward": "once"}},
    {"decoder": {"modulate": False, "share_heads": False}},
    {"iou_head": False},
    {"match": {"cls": "additive"}},
    {"match": {"cls": "focal", "l1": 5.0, "giou": 2.0, "ce": 2.0}},
    {"dn": {"enabled": False}},
    {"dn": {"group_mode": "dynamic", "noise_scale": 1.0}},
    {"dn": {"content": "pos_neg", "sees_match": False}},
    {"atss": {"layout": "multi_width", "widths": [2.0, 4.0, 8.0]}},
    {"atss": {"levels": 1, "anchor_scale": 2.0, "topk": 3, "stacked_convs": 2}},
    {"atss": {"decode": "ltrb", "centerness_pow": 1.0, "cls": "bce", "layer_scale": True}},
    {"aux": {"enabled": False}},
    {"aux": {"max": 3, "pad": "negatives", "ref": "decoded", "with_feat": True, "weight": 0.5}},
    {"loss": {"cls": {"kind": "focal", "norm": "gt"}, "iou_target": "matched"}},
    {"loss": {"cls": {"kind": "qfl", "eos": 0.3}, "smooth_l1_beta": 0.0}},
    {"loss": {"hl": {"on": ["local"], "rctl_norm": "active", "neg_reduction": "mean"}}},
    {"loss": {"hl": {"on": ["global"]}}},
    {"loss": {"align": {"tau": 0.07, "bce_frames": "shared", "bce_scale": False}}},
    {"loss": {"align": {"enabled": False}}},
    {"infer": {"wbf": {"enabled": False}}},
    {"infer": {"alpha": 0.3, "wbf": {"conf": "max", "iou_thr": 0.75, "weights": [1.0, 0.5]}}},
    {"highlights_only": True},
]


def numbered(settings: list[dict[str, Any]]) -> Iterator[Any]:
    for i, changes in enumerate(settings):
        yield pytest.param(changes, id=f"{i}-{'-'.join(changes)}")


def without_gradient(changes: dict[str, Any]) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that must not learn: fixed ones."""
    return ("detector.start.width",) if "width" in changes.get("qs", {}) else ()


def assert_bit_equal(first: ModelOutput, second: ModelOutput) -> None:
    assert torch.equal(first.saliency, second.saliency)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.spans_cxw, second.spans_cxw)
    assert torch.equal(first.last.logits, second.last.logits)


@pytest.mark.parametrize(
    "changes", [*(pytest.param(row, id=key) for key, row in ABLATION.items()), *numbered(SWITCHES)]
)
def test_every_switch_runs_learns_and_is_saved(changes: dict[str, Any]) -> None:
    # More queries than clips of the shortest sample, so that the selector's fallback is in use.
    model, batch = small_model(queries=6, **changes), make_batch()
    total = total_loss(model.train(), batch, make_targets(batch))
    total.backward()
    assert math.isfinite(float(total.detach()))
    spared = without_gradient(changes)
    for name, parameter in model.named_parameters():
        if name.startswith(spared):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build_model("sg_detr", VIDEO_DIM, TEXT_DIM, model.settings.model_dump())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_bit_equal(evaluate(model, batch), evaluate(other, batch))
