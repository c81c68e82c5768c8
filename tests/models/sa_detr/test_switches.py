"""Every switch and every row of the ablation tables: it runs, all of it learns, it can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.models.sa_detr.whole import small_model
from tests.models.small import assert_learns_and_is_saved

FA = {"vtc": {"enabled": True}, "ctm": {"enabled": True}}
NO_FA = {"vtc": {"enabled": False}, "ctm": {"enabled": False}}
NO_QI = {"init": {"anchors": "learned"}}
NO_AD = {"enhance": {"enabled": False}, "gauss": {"mode": "none"}}
NO_DN = {"dn": {"mode": "none"}}
TABLES: dict[str, dict[str, Any]] = {
    "4a": NO_FA | NO_QI | NO_AD | NO_DN,
    "4b": FA | NO_QI | NO_AD | NO_DN,
    "4c": NO_FA | NO_AD | NO_DN,
    "4d": NO_FA | NO_QI | NO_DN,
    "4e": NO_FA | NO_QI | NO_AD,
    "4f": NO_FA | NO_AD,
    "4g": NO_FA | NO_DN,
    "4h": NO_FA,
    "4i": NO_AD,
    "4j": {},
    "5-dynamic": {"init": {"anchors": "dynamic", "loss": False}},
    "6-modulate": {"enhance": {"enabled": False}},
    "6-enhance": {"gauss": {"mode": "none"}},
    "7-before-before": {"ctm": {"stage": "before"}},
    "7-after-after": {"vtc": {"stage": "after"}},
    "7-after-before": {"vtc": {"stage": "after"}, "ctm": {"stage": "before"}},
    "8-positive": {"dn": {"mode": "positive_only"}},
    "8-curriculum": {"dn": {"mode": "curriculum"}},
    "10-vtc": {"ctm": {"enabled": False}},
    "10-ctm": {"vtc": {"enabled": False}},
    "figure-6": {"dn": {"groups": 9}},
}
SWITCHES: list[dict[str, Any]] = [
    {"preset": "robust"},
    {"drop": "path", "dropout": 0.1, "input_dropout": 0.5},
    {"text_positions": True, "projection_layers": 1},
    {"text_positions": True, "fusion": {"update": "parallel"}},
    {"layers": {"fusion": 1, "encoder": 1, "refiner": 1}},
    {"layers": {"fusion": 3, "refiner": 3}},
    {"ctm": {"legacy_intra_transposed": True}},
    {"fusion": {"share": False}},
    {"fusion": {"update": "parallel"}},
    {"fusion": {"update": "parallel", "share": False, "keys_include_token": False}},
    {"fusion": {"update": "parallel", "share": False}} | NO_FA | {"enhance": {"enabled": False}},
    {"fusion": {"share": False}} | NO_FA | {"enhance": {"enabled": False}},
    {"fusion": {"keys_include_token": False}},
    {"local": {"input": "fused"}},
    {"local": {"include_token": True}},
    {"init": {"detach_ref": False}},
    {"dn": {"band": False, "center_ref": "center", "sees_match": False}},
    {"align": {"samples": 3, "expand": 0.5}},
    {"enhance": {"norm": "softmax", "gate": "channel", "scaled": True, "zero_init": True}},
    {"gauss": {"mode": "add_log", "alpha": 4.0, "pos": "end"}},
    {"residual": "query"},
    {"update": "raw"},
    {"quality": {"w_matched": 10.0, "norm": "sum_per_sample", "margin": 0.2}},
    {"quality": {"weighting": "bins", "on_noise": True}},
    {"match": {"l1": 5.0, "giou": 2.0, "quality_cost": 1.0}},
    {"loss": {"norm": "none", "aux": False}},
    {"highlights_only": True},
    {"highlights_only": True, "vtc": {"stage": "after"}, "ctm": {"enabled": False}},
    {"highlights_only": True} | NO_FA,
]


def numbered(settings: list[dict[str, Any]]) -> Iterator[Any]:
    for i, changes in enumerate(settings):
        yield pytest.param(changes, id=f"{i}-{'-'.join(changes)}")


@pytest.mark.parametrize(
    "changes", [*(pytest.param(row, id=key) for key, row in TABLES.items()), *numbered(SWITCHES)]
)
def test_every_switch_runs_learns_and_is_saved(changes: dict[str, Any]) -> None:
    assert_learns_and_is_saved("sa_detr", small_model(**changes))
