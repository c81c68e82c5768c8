"""Dimensions, and what params.yaml may change of them."""

from typing import Any

import pytest

from mrmodel.config.search_space import Choice, FloatRange, IntRange, changed_space, full_name
from mrmodel.errors import ConfigError

DECLARED = {
    "loss.iou": FloatRange(low=0.3, high=5.0, log=True, when={"iou_head": [True]}),
    "dn.groups": IntRange(low=2, high=8),
    "gauss.mode": Choice(choices=["none", "add_log"]),
}


def test_changes_keep_what_they_do_not_name() -> None:
    space = changed_space(
        DECLARED, {"loss.iou": {"high": 9.0}, "dn.groups": {"low": 4, "step": 2}}, "tune.space"
    )
    assert space["loss.iou"] == FloatRange(low=0.3, high=9.0, log=True, when={"iou_head": [True]})
    assert space["dn.groups"] == IntRange(low=4, high=8, step=2)
    assert space["gauss.mode"] is DECLARED["gauss.mode"]


def test_null_takes_a_dimension_away_and_a_type_makes_a_new_one() -> None:
    changes: dict[str, Any] = {
        "loss.iou": None,
        "dn.groups": {"type": "choice", "choices": [2, 5]},
        "pool.layers": {"type": "int", "low": 1, "high": 3},
    }
    space = changed_space(DECLARED, changes, "tune.space")
    assert "loss.iou" not in space
    assert space["dn.groups"] == Choice(choices=[2, 5])
    assert space["pool.layers"] == IntRange(low=1, high=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss.iuo": {"low": 1.0}}, r"tune\.space\.loss\.iuo.*own needs a `type`.*'loss\.iou'"),
        ({"loss.iuo": None}, r"tune\.space\.loss\.iuo.*not searched anyway.*'loss\.iou'"),
        ({"loss.iou": {"hihg": 1.0}}, r"tune\.space\.loss\.iou\.hihg.*unknown key.*'high'"),
        ({"loss.iou": {"low": 9.0}}, r"low 9\.0 is above high 5\.0"),
        ({"loss.iou": {"low": 0.0}}, r"low 0\.0 must be above 0 where log"),
        ({"loss.iou": {"low": float("nan")}}, r"loss\.iou\.low"),
        ({"dn.groups": {"low": 2.5}}, r"dn\.groups\.low = 2\.5"),
        ({"dn.groups": {"step": 4}}, r"no multiple of step 4"),
        ({"dn.groups": {"log": True, "step": 2}}, r"step must be 1"),
        ({"gauss.mode": {"choices": []}}, r"gauss\.mode\.choices"),
        ({"x": {"type": "flaot", "low": 1.0}}, r"x\.type = 'flaot'.*float, int, choice.*'float'"),
    ],
)
def test_a_mistake_names_the_place_and_the_rule(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed_space(DECLARED, changes, "tune.space")


def test_short_names_stand_for_places_in_the_file() -> None:
    assert full_name("train.run.lr", "sg_detr", "finetune") == "train.finetune.lr"
    assert full_name("train.weight_decay", "sg_detr", "finetune") == "train.weight_decay"
    assert full_name("postprocess.nms_iou", "sg_detr", "finetune") == "postprocess.nms_iou"
    assert full_name("dn.groups", "sg_detr", "finetune") == "models.sg_detr.dn.groups"
