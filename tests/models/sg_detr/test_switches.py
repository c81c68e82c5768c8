"""Every switch and every row of the ablation: it runs, all of it learns, it can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.models.sg_detr.whole import small_model
from tests.models.small import assert_learns_and_is_saved

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
    {"match": {"alpha": 0.3}},
    {"highlights_only": True},
]


def numbered(settings: list[dict[str, Any]]) -> Iterator[Any]:
    for i, changes in enumerate(settings):
        yield pytest.param(changes, id=f"{i}-{'-'.join(changes)}")


def without_gradient(changes: dict[str, Any]) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that must not learn: fixed ones."""
    return ("detector.start.width",) if "width" in changes.get("qs", {}) else ()


@pytest.mark.parametrize(
    "changes", [*(pytest.param(row, id=key) for key, row in ABLATION.items()), *numbered(SWITCHES)]
)
def test_every_switch_runs_learns_and_is_saved(changes: dict[str, Any]) -> None:
    # More queries than clips of the shortest sample, so that the selector's fallback is in use.
    model = small_model(queries=6, **changes)
    assert_learns_and_is_saved("sg_detr", model, without_gradient(changes))
